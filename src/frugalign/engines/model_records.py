"""The record of a whole model that we trained: a hash of its weights and of every file that changes its results.

A model that others saved has no record, and is accepted without.
"""

from __future__ import annotations

from pathlib import Path

from frugalign.base.errors import FrugalignError
from frugalign.base.files import MODEL_CONFIG_FILE, MODEL_RECORD_FILE, hash_file, write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.base.specs import local_path

_COVERED = (
    *("*.safetensors", "*.safetensors.index.json", MODEL_CONFIG_FILE, "generation_config.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "*.model"),
)


def record_model(folder: Path) -> None:
    """Write the record of the model and the tokenizer that were saved in `folder`."""
    write_json_atomic(folder / MODEL_RECORD_FILE, {"files": {path.name: hash_file(path) for path in _covered(folder)}})


def check_model_record(name: str, revision: str | None = None) -> None:
    """Check a model against its record, if it has one.

    Args:
        name: a folder, or a hub id whose model has been loaded already.

    Raises:
        FrugalignError: a file was changed, added or removed after the model was saved.
    """
    folder = local_path(name)
    if folder is None:
        from transformers.utils.hub import cached_file

        quiet = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
        arguments = {f"_raise_exceptions_for_{what}": value for what, value in quiet.items()}
        found = cached_file(name, MODEL_RECORD_FILE, revision=revision, **arguments)
        if found is None:
            return
        folder = Path(found).parent
    if not (folder / MODEL_RECORD_FILE).is_file():
        return
    recorded = read_json(folder / MODEL_RECORD_FILE).get("files")
    now = {path.name: path for path in _covered(folder)}
    if not isinstance(recorded, dict) or not recorded:
        raise FrugalignError(f"{folder / MODEL_RECORD_FILE} is damaged: it lists no files.")
    is_local = local_path(name) is not None  # of a hub model, only the files that were needed are here
    for file in sorted({*recorded, *now} if is_local else {*recorded} & {*now}):
        if file not in recorded or file not in now or hash_file(now[file]) != recorded[file]:
            raise FrugalignError(
                f"The model in {name} has been changed since it was saved: {file} does not have the hash in "
                f"{MODEL_RECORD_FILE}. If you changed it on purpose, delete that file."
            )


def _covered(folder: Path) -> list[Path]:
    return sorted({path for pattern in _COVERED for path in folder.glob(pattern) if path.is_file()})
