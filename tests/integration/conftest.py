"""A folder with the files of docs/integration.md, a tiny model and a text."""

import pytest

from tests.integration import doc_blocks, tiny


@pytest.fixture(scope="session")
def document_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("document")
    tiny.make(folder)
    doc_blocks.write_files(folder)
    return folder
