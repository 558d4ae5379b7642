import subprocess
import sys
from pathlib import Path


def test_every_label_operation_of_a_step_compiles_to_one_graph_with_equal_results() -> None:
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "equal\n", done.stderr
