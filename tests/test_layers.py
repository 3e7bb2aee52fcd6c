"""The folders are the architecture: includes go one way, and CUDA stands in csrc/cuda alone."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("csrc", "offload", "zero3", "python")  # each may include itself and those before it
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


def wrong_includes(path: str, text: str) -> list[str]:
    """Quoted includes that are not in the layer of `path` or in one before it."""
    allowed = LAYERS[: LAYERS.index(path.split("/")[0]) + 1]
    return [header for header in includes(text, quoted=True) if header.split("/")[0] not in allowed]


def cuda_of(path: str, text: str) -> list[str]:
    """CUDA's headers and names in a file, and our CUDA code where only `offload` may use it."""
    headers = [header for header in includes(text, quoted=False) if CUDA_HEADER.search(header)]
    ours = [header for header in includes(text, quoted=True) if header.startswith(CUDA_FOLDER)]
    code = STRING.sub('""', INCLUDE.sub("", without_comments(text)))
    return headers + CUDA_NAME.findall(code) + (ours if not path.startswith(CUDA_USERS) else [])


def test_includes_go_from_python_to_zero3_to_offload_to_csrc():
    wrong = {path: found for path, text in sources().items() if (found := wrong_includes(path, text))}
    assert not wrong, f"includes go one way, python -> zero3 -> offload -> csrc; these do not: {wrong}"


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
