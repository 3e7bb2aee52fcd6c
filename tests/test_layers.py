"""The folders are the architecture: includes and imports go one way, CUDA stands in csrc/cuda alone, and DeepSpeed's
internals in the room `deepspeed` alone."""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Folder -> those that it may include and link beside itself. A folder that is not named belongs to the one that it is in.
FOLDERS = {
    "csrc/base": (),
    "csrc/ops": ("csrc/base",),
    "csrc/comm": ("csrc/base",),
    "csrc/cuda": ("csrc/ops", "csrc/base"),
    "csrc/formats": ("csrc/base",),
    "offload": ("csrc/cuda", "csrc/ops", "csrc/base"),
    "offload/fake": ("offload", "csrc/ops", "csrc/base"),
    "zero3/plan": ("offload", "csrc/ops", "csrc/base"),
    "zero3/step": ("zero3/plan", "offload", "csrc/comm", "csrc/ops", "csrc/base"),
    "zero3/played": ("zero3/step", "zero3/plan", "offload", "csrc/comm", "csrc/ops", "csrc/base"),
    "zero3/convert": ("zero3/plan", "csrc/formats", "csrc/base"),
    "python/bindings/core": ("zero3/step", "zero3/plan", "offload", "csrc/comm", "csrc/ops", "csrc/base"),
    "python/bindings/ckpt": ("zero3/convert", "csrc/formats", "csrc/base"),
    "python/bindings/lab": (
        *("python/bindings/core", "zero3/played", "zero3/step", "zero3/plan", "offload/fake"),
        *("offload", "csrc/comm", "csrc/ops", "csrc/base"),
    ),
}
LAYERS = tuple(dict.fromkeys(folder.split("/")[0] for folder in FOLDERS))
TORCH_FREE_FOLDERS = ("csrc/base", "csrc/cuda", "csrc/formats", "zero3/plan", "zero3/convert", "python/bindings/ckpt")
TORCH_HEADER = re.compile(r"(?:torch|ATen|c10|at)/")
# Targets of a CMakeLists.txt that stands above their folder.
TARGETS_ABOVE = {
    "zeromuon_plan": "zero3/plan",
    "zeromuon_step": "zero3/step",
    "zeromuon_played": "zero3/played",
    "zeromuon_fake": "offload/fake",
}
TARGET = re.compile(
    r"^\s*(zeromuon_library|add_library|zeromuon_python_module|Python3_add_library)\((\w+)", re.MULTILINE
)
LINKS = re.compile(r"target_link_libraries\((\w+)([^)]*)\)")
CUDA_FOLDER = "csrc/cuda/"
CUDA_USERS = (CUDA_FOLDER, "offload/")

# Group 1 is a comment; a string stays, so that what looks like a comment in it is none.
COMMENT = re.compile(r"""(//[^\n]*|/\*.*?\*/)|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)
STRING = re.compile(r'"(?:\\.|[^"\\\n])*"')
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)
CUDA_HEADER = re.compile(r"cuda|cublas|cudnn|nccl|nvtx|thrust/|cub/", re.IGNORECASE)
CUDA_NAME = re.compile(r"\b(?:cuda[A-Z]|cu[A-Z][a-z]|cublas|nvtx|nccl)\w*|__global__|<<<")


def sources() -> dict[str, str]:
    """Path from the root of the repository -> text, of every C++ and CUDA file of the layers."""
    files = (path for layer in LAYERS for path in (ROOT / layer).rglob("*"))
    chosen = (path for path in files if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".inc"})
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(chosen)}


def without_comments(text: str) -> str:
    """The text with each comment as one space."""
    return COMMENT.sub(lambda match: " " if match.group(1) else match.group(0), text)


def includes(text: str, quoted: bool) -> list[str]:
    """What a file includes in quotes, or in angle brackets."""
    return [
        header for header in (match[1 if quoted else 2] for match in INCLUDE.finditer(without_comments(text))) if header
    ]


def folder_of(path: str) -> str | None:
    """The folder of FOLDERS that a file is in."""
    return max((folder for folder in FOLDERS if path.startswith(f"{folder}/")), key=len, default=None)


def wrong_includes(path: str, text: str) -> list[str]:
    """Includes of ours, in quotes or not, that FOLDERS does not allow `path`."""
    own = folder_of(path)
    allowed = {own, *FOLDERS.get(own, ())} - {None}
    ours = [header for header in includes(text, quoted=False) if header.split("/")[0] in LAYERS]
    return [header for header in includes(text, quoted=True) + ours if folder_of(header) not in allowed]


def reached(start: str, following: Callable[[str], set[str]]) -> set[str]:
    """`start` and all that it comes to, step by step."""
    to_do, done = [start], set()
    while to_do:
        name = to_do.pop()
        done.add(name)
        to_do += following(name) - done
    return done


def needs_torch(path: str, texts: dict[str, str]) -> set[str]:
    """Headers of libtorch that a file includes, by way of others of `texts`."""
    files = reached(path, lambda file: texts.keys() & includes(texts[file], quoted=True))
    return {header for file in files for header in includes(texts[file], quoted=False) if TORCH_HEADER.match(header)}


def cmake_files() -> dict[str, str]:
    files = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("CMakeLists.txt"))
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}


def folders_of_targets(files: dict[str, str]) -> dict[str, str]:
    """Target of CMake -> its folder of FOLDERS."""
    found = {}
    for path, text in files.items():
        for maker, name in TARGET.findall(text):
            target = f"zeromuon_{name}" if maker == "zeromuon_library" else name
            if folder := TARGETS_ABOVE.get(target, folder_of(path)):
                found[target] = folder
    return found


def wrong_links(files: dict[str, str]) -> list[tuple[str, str]]:
    """(target, what it links and FOLDERS does not allow it)"""
    folders = folders_of_targets(files)
    found = []
    for text in files.values():
        for target, linked in LINKS.findall(text):
            own = folders.get(target)
            others = [name for name in linked.split() if name in folders] if own else []
            found += [(target, name) for name in others if folders[name] not in (own, *FOLDERS[own])]
    return found


def cuda_of(path: str, text: str) -> list[str]:
    """CUDA's headers and names in a file, and our CUDA code where only `offload` may use it."""
    headers = [header for header in includes(text, quoted=False) if CUDA_HEADER.search(header)]
    ours = [header for header in includes(text, quoted=True) if header.startswith(CUDA_FOLDER)]
    code = STRING.sub('""', INCLUDE.sub("", without_comments(text)))
    return headers + CUDA_NAME.findall(code) + (ours if not path.startswith(CUDA_USERS) else [])


def test_includes_go_from_python_to_zero3_to_offload_to_csrc_and_between_folders_as_the_table_says():
    wrong = {path: found for path, text in sources().items() if (found := wrong_includes(path, text))}
    assert not wrong, f"includes that no arrow allows: {wrong}; the arrows: {FOLDERS}"


def test_the_table_of_folders_goes_one_way():
    order = list(FOLDERS)
    assert all(order.index(used) < order.index(folder) for folder, uses in FOLDERS.items() for used in uses)
    assert all(folder_of(path) for path in sources())


def test_link_targets_go_the_same_way():
    files = cmake_files()
    assert set(folders_of_targets(files).values()) == set(FOLDERS), "every folder has a target that was seen"
    assert wrong_links(files) == []


def test_a_link_against_the_arrows_is_found():
    files = cmake_files()
    files["csrc/formats/CMakeLists.txt"] += "\ntarget_link_libraries(zeromuon_formats PUBLIC zeromuon_plan)\n"
    files["python/bindings/core/CMakeLists.txt"] += "\ntarget_link_libraries(_core\n  PRIVATE zeromuon_fake)\n"
    assert wrong_links(files) == [("zeromuon_formats", "zeromuon_plan"), ("_core", "zeromuon_fake")]


def test_the_folders_without_libtorch_include_none_of_it():
    texts = sources()
    free = [path for path in texts if folder_of(path) in TORCH_FREE_FOLDERS]
    wrong = {path: found for path in free if (found := needs_torch(path, texts))}
    assert not wrong, f"these include libtorch: {wrong}"
    assert needs_torch("offload/device.h", texts), "where there is some, it is seen"


def test_what_is_included_in_quotes_is_a_file_named_from_the_root():
    missing = {
        path: [h for h in includes(text, quoted=True) if not (ROOT / h).is_file()] for path, text in sources().items()
    }
    assert not any(missing.values()), f"no such files: { {path: found for path, found in missing.items() if found} }"


def test_no_cuda_call_or_header_stands_outside_csrc_cuda():
    outside = {path: text for path, text in sources().items() if not path.startswith(CUDA_FOLDER)}
    wrong = {path: found for path, text in outside.items() if (found := cuda_of(path, text))}
    assert not wrong, f"CUDA stands in {CUDA_FOLDER}, which only offload uses; these have it, too: {wrong}"


def test_the_scan_sees_every_layer_and_the_cuda_code():
    files = sources()
    assert {path.split("/")[0] for path in files} == set(LAYERS)
    names = {name for path, text in files.items() if path.startswith(CUDA_FOLDER) for name in cuda_of(path, text)}
    assert {"cuda_runtime.h", "nvtx3/nvToolsExt.h", "cudaMemcpyAsync", "cudaHostRegister", "__global__", "<<<"} <= names


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("csrc/ops/a.h", '#include "offload/lane.h"\n'),
        ("csrc/base/a.h", '  #  include "zero3/plan/step_plan.h"\n'),
        ("offload/a.h", '#include "zero3/plan/step_plan.h"\n'),
        ("zero3/a.cpp", '#include "python/bindings/bind.h"\n'),
        ("zero3/a.cpp", '#include "../offload/lane.h"\n'),
        ("zero3/plan/a.cpp", '#include "python/bindings/core/names.h"\n'),
        ("zero3/step/a.cpp", '#include "../offload/lane.h"\n'),
        ("zero3/plan/a.h", '#include "zero3/step/step_executor.h"\n'),
        ("zero3/convert/a.h", '#include "zero3/step/step_executor.h"\n'),
        ("offload/a.h", '#include "offload/fake/fake_device.h"\n'),
        ("python/bindings/core/a.cpp", '#include "offload/fake/fake_device.h"\n'),
        ("offload/a.h", '#include "csrc/comm/collectives.h"\n'),
        ("csrc/formats/a.h", '#include "csrc/ops/arrays.h"\n'),
        ("csrc/base/a.h", '#include "csrc/comm/collectives.h"\n'),
        ("csrc/ops/a.h", "#include <zero3/plan/step_plan.h>\n"),
    ],
)
def test_an_include_against_the_arrows_is_found(path: str, text: str):
    assert len(wrong_includes(path, text)) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("offload/a.cpp", "#include <cuda_runtime.h>\n"),
        ("offload/a.cpp", "#include <c10/cuda/CUDAStream.h>\n"),
        ("offload/a.cpp", "void f() { cudaDeviceSynchronize (); }\n"),
        ("offload/a.cpp", 'const char* url = "//"; cudaStream_t stream;\n'),
        ("csrc/ops/a.h", "__global__ void kernel();\n"),
        ("csrc/ops/a.cpp", "kernel<<<1, 1>>>();\n"),
        ("zero3/a.cpp", '#include "csrc/cuda/runtime.h"\n'),
        ("python/bindings/a.cpp", "nvtxRangePop();\n"),
    ],
)
def test_cuda_outside_its_folder_is_found(path: str, text: str):
    assert len(cuda_of(path, text)) == 1


def test_comments_texts_and_our_own_names_are_no_cuda():
    text = (
        "// cudaMalloc() <<<\n/* #include <cuda.h>\n*/\n#include <vector>\n"
        'throw_error("cudaMalloc failed // <<<");\nbool cuda = target.cuda; cuda_target(); kCudaBatch;\n'
    )
    assert cuda_of("csrc/ops/a.cpp", text) == []
    assert cuda_of("offload/a.cpp", '#include "csrc/cuda/runtime.h"\ncuda::synchronize(stream);\n') == []


# ---- Python: rooms are the folders of the package ------------------------------------------------------

PACKAGE = ROOT / "python" / "zeromuon"
# Room -> what its modules may import of the package beside their own room; extension modules are rooms, too.
ARROWS = {
    "base": ("_built",),
    "ranks": ("base",),
    "selection": ("ranks", "base"),
    "deepspeed": ("selection", "ranks", "base", "_core"),
    "qk_clip": ("deepspeed", "selection", "ranks", "base", "_core"),
    "optimizer": ("qk_clip", "deepspeed", "selection", "ranks", "base", "_core"),
    "ckpt": ("selection", "base", "_ckpt"),
    "reference": (),
}
TOPS = ("commands", "__init__", "__main__")  # may import all

TORCH_FREE = ("base/", "ckpt/", "commands/cli.py", "optimizer/options.py", "__init__.py", "__main__.py")
NEED_TORCH = {"torch", "deepspeed", "transformers", "accelerate", "zeromuon._core", "zeromuon._lab"}

DEEPSPEED_ROOM = "deepspeed/"
# Modules, or folders, outside of it that name DeepSpeed's internals -> why.
DEEPSPEED_USERS = {
    "commands/compare/": "takes DeepSpeed's own Muon apart",
    "commands/bench/": "takes DeepSpeed's own optimizers and converters apart",
    "ranks/connect.py": "turns off a collective that DeepSpeed would compile before it joins the ranks",
    "selection/model.py": "the whole shape of a parameter that zero.Init has partitioned",
}
DEEPSPEED_PUBLIC = {"initialize", "init_distributed", "zero", "accelerator", "utils", "__version__"}
# Tables of the room that list what it needs of DeepSpeed's objects, and names in them that others use, too.
DEEPSPEED_TABLES = {
    "support.py": ("REPLACED_METHODS", "REQUIRED_ATTRIBUTES"),
    "loop.py": ("LOOP_METHODS", "REQUIRED_BY_FUSED_STEP"),
}
COMMON_NAMES = {"optimizer", "dtype", "loss_scale", "offload_optimizer"}
DEEPSPEED_ATTRIBUTE = re.compile(r"ds_(?!config)[a-z]\w*|_z3_\w+")


def modules() -> dict[str, str]:
    """Path from the package -> text, of every Python module of it but that which a build writes."""
    sources = (p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "_built.py")
    return {str(p.relative_to(PACKAGE)): p.read_text(encoding="utf-8") for p in sources}


def nodes_of(tree: ast.AST, eager: bool) -> Iterator[ast.AST]:
    """All nodes; eager: those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if eager and (typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            continue
        yield node
        yield from nodes_of(node, eager)


def imports_of(path: str, text: str, eager: bool = False) -> list[str]:
    """Full dotted names of what a module imports, "zeromuon.base.words.nearest_name"; wherever it does, or eagerly."""
    found, folder = [], ("zeromuon", *path.split("/")[:-1])
    for node in nodes_of(ast.parse(text), eager):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level] if node.level else ()
            prefix = [*start, *(node.module or "").split(".")] if node.module else list(start)
            found += [".".join([*prefix, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found += [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return found


@functools.cache
def exports() -> dict[str, str]:
    """What the package itself exports: name -> "optimizer.registration"."""
    assigned = {
        n.targets[0].id: n.value
        for n in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(n, ast.Assign)
    }
    return ast.literal_eval(assigned["_EXPORTS"])


def room_of(dotted: str) -> str | None:
    """Room of an imported name; None for other packages, "__init__" for the package itself."""
    first, _, rest = dotted.partition(".")
    if first != "zeromuon":
        return None
    name = exports().get(rest, rest).split(".")[0]
    known = {*ARROWS, "commands", *(arrow for arrows in ARROWS.values() for arrow in arrows)}
    return name if name in known else "__init__"


def wrong_imports(path: str, text: str) -> list[tuple[str, str]]:
    """(module, room) of the imports that go against the arrows."""
    own = path.split("/")[0].removesuffix(".py")
    if own in TOPS:
        return []
    rooms = {room_of(name) for name in imports_of(path, text)} - {None, own, *ARROWS[own]}
    return [(path, room) for room in sorted(rooms)]


def test_imports_go_from_commands_to_optimizer_to_deepspeed_and_selection_to_ranks_to_base():
    wrong = [found for path, text in modules().items() for found in wrong_imports(path, text)]
    assert not wrong, f"imports that no arrow allows: {wrong}; the arrows: {ARROWS}"


def test_every_module_is_in_a_room():
    assert {path.split("/")[0].removesuffix(".py") for path in modules()} == {*ARROWS, *TOPS}


@pytest.mark.parametrize(
    ("path", "text", "room"),
    [
        ("base/a.py", "from ..ranks import machine\n", "ranks"),
        ("ranks/a.py", "def f():\n    from ..selection.rules import ParamSpec\n", "selection"),
        ("selection/a.py", "from ..deepspeed import layout\n", "deepspeed"),
        ("deepspeed/a.py", "from ..optimizer.tasks import Request\n", "optimizer"),
        ("deepspeed/a.py", "from .. import ZeroMuon\n", "optimizer"),
        ("deepspeed/a.py", "import zeromuon\n", "__init__"),
        ("deepspeed/a.py", "from zeromuon import register\n", "optimizer"),
        ("optimizer/a.py", "if True:\n    import zeromuon.commands.cli as cli\n", "commands"),
        ("ckpt/a.py", "from .. import _core\n", "_core"),
        ("ckpt/a.py", "from ..optimizer import options\n", "optimizer"),
        ("optimizer/a.py", "from ..ckpt import inspect\n", "ckpt"),
        ("ranks/a.py", "import importlib\nimportlib.import_module('zeromuon.commands.cli')\n", "commands"),
    ],
)
def test_an_import_against_the_arrows_is_found(path: str, text: str, room: str):
    assert wrong_imports(path, text) == [(path, room)]


def test_imports_with_the_arrows_are_none_against_them():
    text = "import torch\nfrom .. import _core\nfrom . import layout\nfrom ..selection.rules import ParamSpec\n"
    assert wrong_imports("deepspeed/a.py", text) == []
    assert wrong_imports("commands/bench/a.py", "from ...optimizer import bind\nfrom .... import zeromuon\n") == []


# ---- Python: rooms without torch -----------------------------------------------------------------------


def imported_at_start(path: str, texts: dict[str, str]) -> set[str]:
    """What is imported, by way of others of `texts`, when a module is: dotted names."""

    def imported(module: str) -> list[str]:
        return imports_of(module, texts[module], eager=True)

    modules = reached(path, lambda module: {f for name in imported(module) for f in files_of(name) if f in texts})
    return {name for module in modules for name in imported(module)}


def files_of(dotted: str) -> list[str]:
    """Modules of the package that an import of this name runs, where they exist."""
    parts = dotted.split(".")[1:] if dotted.startswith("zeromuon.") else []
    stems = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return [f"{stem}{end}" for stem in stems for end in (".py", "/__init__.py")]


def needing_torch(path: str, texts: dict[str, str]) -> set[str]:
    """What needs torch of all that is imported when a module is."""
    names = imported_at_start(path, texts)
    return {n for n in NEED_TORCH for name in names if name == n or name.startswith(f"{n}.")}


def test_the_torch_free_modules_import_no_torch():
    texts = modules()
    free = [path for path in texts if path.startswith(TORCH_FREE)]
    assert len(free) > len(TORCH_FREE)
    wrong = {path: found for path in free if (found := needing_torch(path, texts))}
    assert not wrong, f"modules that must start without torch, and what they import: {wrong}"


def test_an_import_of_torch_by_way_of_other_modules_is_found_and_one_in_a_function_is_not():
    texts = {
        "base/a.py": "from ..selection.rules import roles_for\n",
        "selection/__init__.py": "",
        "selection/rules.py": "try:\n    from .model import facts\nexcept ImportError:\n    pass\n",
        "selection/model.py": "import torch.nn as nn\n",
        "base/b.py": "from ..selection import lazily\nif TYPE_CHECKING:\n    import torch\n",
        "selection/lazily.py": "def f():\n    import torch\n",
        "base/c.py": "from .. import _core\n",
    }
    found = {path: needing_torch(path, texts) for path in texts if path.startswith("base/")}
    assert found == {"base/a.py": {"torch"}, "base/b.py": set(), "base/c.py": {"zeromuon._core"}}


# ---- Python: DeepSpeed's internals ---------------------------------------------------------------------


def names_of_the_room() -> set[str]:
    """Attributes and methods of DeepSpeed's objects that the tables of the room list."""
    names: set[str] = set()
    for file, tables in DEEPSPEED_TABLES.items():
        for node in ast.parse((PACKAGE / DEEPSPEED_ROOM / file).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and node.targets[0].id in tables:
                keys = node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts
                names.update(key.value for key in keys if isinstance(key, ast.Constant))
    return names - COMMON_NAMES


def internals_of(path: str, text: str, listed: set[str]) -> list[str]:
    """DeepSpeed's modules beside its public ones, and attributes of its objects, that a module names. listed: of the
    latter those in the tables."""
    tree = ast.parse(text)
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    dotted = [*imports_of(path, text), *(f"{n.value.id}.{n.attr}" for n in used if isinstance(n.value, ast.Name))]
    inner = [name for name in dotted if re.match(r"deepspeed\.(?!(?:%s)\b)" % "|".join(DEEPSPEED_PUBLIC), name)]
    # A text that is such a name is one that getattr() and its like are given.
    names = [node.attr for node in used]
    names += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    attributes = [name for name in names if name in listed or DEEPSPEED_ATTRIBUTE.fullmatch(str(name))]
    return sorted({*inner, *attributes})


def test_only_the_room_deepspeed_names_deepspeeds_internals():
    listed = names_of_the_room()
    outside = {path: text for path, text in modules().items() if not path.startswith(DEEPSPEED_ROOM)}
    found = {path: names for path, text in outside.items() if (names := internals_of(path, text, listed))}
    wrong = {path: names for path, names in found.items() if not path.startswith(tuple(DEEPSPEED_USERS))}
    assert not wrong, f"DeepSpeed's internals are named in {DEEPSPEED_ROOM}; these name them, too: {wrong}"
    idle = [user for user in DEEPSPEED_USERS if not any(path.startswith(user) for path in found)]
    assert not idle, f"DEEPSPEED_USERS lists what names none: {idle}"


def test_the_scan_sees_the_room_and_its_tables():
    listed, room = names_of_the_room(), {p: t for p, t in modules().items() if p.startswith(DEEPSPEED_ROOM)}
    assert {"_pre_step", "fp16_groups", "_release_sub_group", "averaged_gradients"} <= listed
    seen = {name for path, text in room.items() for name in internals_of(path, text, listed)}
    assert {"grad_position", "ds_tensor", "_z3_optimizer", "deepspeed.runtime.zero.utils"} <= seen


@pytest.mark.parametrize(
    "text",
    [
        "def f(zero3):\n    return zero3.fp32_partitioned_groups_flat[0]\n",
        "groups = getattr(zero3, 'fp16_groups', None)\n",
        "setattr(zero3, '_post_step', f)\n",
        "name = 'fp16_groups'\nobject.__getattribute__(zero3, name)\n",
        "p.ds_tensor.add_(1)\n",
        "from deepspeed.runtime.engine import DeepSpeedEngine\n",
        "def f():\n    import deepspeed.ops\n",
        "import deepspeed\ndeepspeed.set_optimizer_flags = None\n",
    ],
)
def test_an_internal_of_deepspeed_outside_its_room_is_found(text: str):
    assert len(internals_of("optimizer/a.py", text, names_of_the_room())) == 1


def test_deepspeeds_public_face_and_texts_about_it_are_no_internals():
    text = (
        "import deepspeed\nfrom deepspeed.accelerator import get_accelerator\n"
        "# zero3.fp16_groups\ntext = 'zero3.fp16_groups'\nconfig.ds_config\nengine.optimizer.dtype\n"
        "deepspeed.initialize(model)\ndeepspeed.zero.GatheredParameters([])\nfrom ..deepspeed import layout\n"
    )
    assert internals_of("optimizer/a.py", text, names_of_the_room()) == []
