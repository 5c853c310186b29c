"""`python -m psychocounsel`: the command line."""

from psychocounsel.cli.main import main

main()
