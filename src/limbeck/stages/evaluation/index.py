"""Which module measures the models of a task: plain data."""

EVALUATIONS: dict[str, str] = {
    "classification": "limbeck.stages.evaluation.classification",
    "representation": "limbeck.stages.evaluation.representation",
    "detection": "limbeck.stages.evaluation.detection",
    "segmentation": "limbeck.stages.evaluation.segmentation",
    "similarity": "limbeck.stages.evaluation.similarity",
    "language": "limbeck.stages.evaluation.language",
    "generation": "limbeck.stages.evaluation.generation",
    "table": "limbeck.stages.evaluation.table",
    "clustering": "limbeck.stages.evaluation.clustering",
    "instance_bags": "limbeck.stages.evaluation.instance_bags",
}
"""``Model.task`` -> a module with ``validate`` and ``report``, see :class:`limbeck.stages.evaluation.Evaluation`."""
