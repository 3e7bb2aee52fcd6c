"""What the compiled modules hold: _core what users run, _lab what bench and tests use beside it."""

import re
import subprocess
import sys
from pathlib import Path

import torch  # noqa: F401  (before the modules, which link against it)
import zeromuon
from zeromuon import _core, _lab

PACKAGE = Path(zeromuon.__file__).parent
LABORATORY = (b"FakeDevice", b"VirtualDevice")  # classes with virtual functions, so their names are in the file


def test_the_core_links_neither_the_fake_device_nor_the_played_step():
    core, lab = (Path(module.__file__).read_bytes() for module in (_core, _lab))
    assert [name for name in LABORATORY if name not in lab] == []
    assert [name for name in LABORATORY if name in core] == []


def test_only_bench_uses_the_laboratory():
    sources = {str(p.relative_to(PACKAGE)): p.read_text() for p in PACKAGE.rglob("*.py")}
    users = {path for path, text in sources.items() if re.search(r"\b_lab\b", text)}
    assert users and all(path.startswith("commands/bench/") for path in users), users


def test_the_laboratory_brings_the_core_whose_errors_it_raises():
    code = (
        "import torch, sys\n"
        "from zeromuon import _lab\n"
        "assert 'zeromuon._core' in sys.modules\n"
        "try: _lab.TunedProduct(kind='sum', short_side=1, dtype='float32', backend='blas', tile=1, leaf=1, transposed=False)\n"
        "except sys.modules['zeromuon._core'].CoreValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'kind of product: expected gram, square or apply, got "sum"' in done.stdout, done.stderr


def test_the_core_is_loaded_after_torch_wherever_that_is_installed():
    """Its libraries are found by the loader because torch has loaded them."""
    code = "import sys\nfrom zeromuon import StepError\nassert 'torch' in sys.modules, 'torch was not imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
