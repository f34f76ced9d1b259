"""Data sets: read from anywhere, checked row by row, rendered as prompts. Importing this package imports neither
torch nor datasets."""

from typing import TYPE_CHECKING

from frugalign.base.specs import lazy_exports

if TYPE_CHECKING:
    from frugalign.data.loading import load_prompts as load_prompts
    from frugalign.data.loading import load_splits as load_splits
    from frugalign.data.loading import training_prompts as training_prompts
    from frugalign.data.rows import Problem as Problem
    from frugalign.data.splits import dataset_fingerprint as dataset_fingerprint
    from frugalign.data.splits import held_out_split as held_out_split
    from frugalign.data.templating import EncodedPrompts as EncodedPrompts
    from frugalign.data.templating import Rendering as Rendering
    from frugalign.data.templating import encode_prompts as encode_prompts
    from frugalign.data.templating import render_prompt as render_prompt
    from frugalign.data.validate import ValidationReport as ValidationReport
    from frugalign.data.validate import validate_files as validate_files

_HOME = {
    "EncodedPrompts": "templating",
    "Problem": "rows",
    "Rendering": "templating",
    "ValidationReport": "validate",
    "dataset_fingerprint": "splits",
    "encode_prompts": "templating",
    "held_out_split": "splits",
    "load_prompts": "loading",
    "load_splits": "loading",
    "render_prompt": "templating",
    "training_prompts": "loading",
    "validate_files": "validate",
}
__all__ = list(_HOME)


__getattr__ = lazy_exports(__name__, _HOME)
