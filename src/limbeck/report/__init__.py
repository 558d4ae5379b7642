"""The page a person looks at: one self-contained HTML file about a run or a comparison."""

from limbeck.report.page import write

__all__ = ["write"]
