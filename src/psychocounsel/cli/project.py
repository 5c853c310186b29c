"""The commands with which a project begins: the bundled recipes, a project of one's own, and schemas for editors."""

from psychocounsel.reporting import console


def recipes() -> None:
    """List the bundled recipes and what each needs.

    `run NAME` runs one; `init PROJECT --from NAME` makes a copy to edit.
    """
    from psychocounsel.config.components import recipes_folder
    from psychocounsel.config.loading import load_config
    from psychocounsel.config.recipe import RECIPE_FILE, RecipeConfig, bundled_recipes

    for name in bundled_recipes():
        recipe = load_config(RecipeConfig, recipes_folder() / name / RECIPE_FILE)
        console.result(f"{name}\n  {recipe.description}\n  needs: {recipe.needs}")
