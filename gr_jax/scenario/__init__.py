"""The scenario: which images and classes belong to which task, and the plan of every task."""

from gr_jax.scenario.draw import (
    ICARL_ORDER,
    KINDS,
    DatasetProperties,
    Scenario,
    Task,
    class_order,
    long_tailed_counts,
    make_scenario,
    split_tasks,
)

__all__ = ["ICARL_ORDER", "KINDS", "DatasetProperties", "Scenario", "Task", "class_order", "long_tailed_counts",
           "make_scenario", "split_tasks"]
