"""WfCommons: workflows of five applications, from 50 to 1,000 tasks. Prints [[name, {task: [seconds, [needs]]}], ...]."""

import json
import logging
import random
import re
import sys

import numpy
from wfcommons import WorkflowGenerator
from wfcommons.wfchef.recipes import BlastRecipe, EpigenomicsRecipe, GenomeRecipe, MontageRecipe, SrasearchRecipe

RECIPES = {
    "montage": MontageRecipe,
    "epigenomics": EpigenomicsRecipe,
    "blast": BlastRecipe,
    "1000genome": GenomeRecipe,
    "srasearch": SrasearchRecipe,
}


def workflow(recipe: type, tasks: int) -> dict[str, tuple[float, list[str]]]:
    made = WorkflowGenerator(recipe.from_num_tasks(tasks)).build_workflow()
    runtimes = {name: float(task.runtime or 0) for name, task in made.tasks.items()}
    return {name: (runtimes[name], sorted(made.predecessors(name))) for name in made.nodes}


def main() -> None:
    logging.disable(logging.CRITICAL)
    found = []
    for name, recipe in RECIPES.items():
        for wanted in map(int, sys.argv[1:]):
            random.seed(wanted)
            numpy.random.seed(wanted)
            try:
                found.append((f"{name}-{wanted}", workflow(recipe, wanted)))
            except ValueError as small:
                least = max(int(number) for number in re.findall(r"\b\d+\b", str(small).rpartition("least")[2]))
                found.append((f"{name}-{least}", workflow(recipe, least)))
    print(json.dumps(found))


main()
