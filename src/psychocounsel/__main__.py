"""`python -m psychocounsel` -> the command line."""

from psychocounsel.cli.app import main

main()
