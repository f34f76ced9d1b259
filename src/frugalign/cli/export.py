"""`frugalign export`: a proxy as a bundle for engines without this library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from frugalign.cli.parser import Command, parse
from frugalign.options import groups
from frugalign.options.declare import REQUIRED, notes, option
from frugalign.options.kinds import PATH


@dataclass(kw_only=True)
@notes(model_name_or_path="The proxy's base. Default: the one that the proxy names.")
class ExportOptions(groups.ModelAdapter, groups.Model):
    """Options of `frugalign export`."""

    trained_proxy: str = option(REQUIRED, "The trained proxy: a folder or hub id.", positional=True)
    bundle: str = option(REQUIRED, "The folder to write.", PATH, positional=True)
    key_dtype: Literal["float16", "float32"] = option(
        "float16", "Dtype of the tokens' keys. float32 is exact and twice as large."
    )
    recover_hidden: bool = option(
        True, "Include what recovers hidden states from logits, for engines that show nothing else."
    )


COMMAND = Command(
    "export",
    "Write a trained proxy as a small bundle that any engine can run: it needs numpy alone, never transformers or frugalign.",
    ExportOptions,
)


def run(argv: list[str]) -> int:
    """Export, and print what the bundle can do."""
    options: ExportOptions = parse(COMMAND, argv)
    from pathlib import Path

    from frugalign.base.progress_display import showing
    from frugalign.data.rows import printable
    from frugalign.engines.fingerprints import check_base, fingerprint
    from frugalign.engines.loading import default_device, load_model, load_stored_base
    from frugalign.proxy.export import check_free, export_proxy, write_bundle
    from frugalign.proxy.network import load_proxy

    check_free(Path(options.bundle).expanduser())
    proxy, what = load_proxy(options.trained_proxy), f"The proxy in {options.trained_proxy}"
    given: dict[str, Any] = {
        "revision": options.revision,
        "dtype": options.dtype,
        "device_map": options.device_map or default_device(options.use_cpu),
        "load_in_4bit": options.load_in_4bit,
        "adapter": options.adapter,
    }
    with showing():
        if options.model_name_or_path is None:
            base = load_stored_base(proxy.config.base, what, **{k: v for k, v in given.items() if v is not None})
        else:
            base = load_model(options.model_name_or_path, **given)
        check_base(proxy.config.base, fingerprint(base.model, base.tokenizer, name=base.name), what)
        exported = export_proxy(proxy, base, key_dtype=options.key_dtype, recover_hidden=options.recover_hidden)
        write_bundle(exported, options.bundle)
    size = sum(map(len, exported.bundle.files().values()))
    print(f"{printable(options.bundle)}: {size / 1e6:.1f} MB, for {printable(exported.bundle.settings.base)}.")
    print(f"  Keys in {options.key_dtype}: a logit of acceptance moves by {exported.key_error:.1g} at most.")
    if exported.recovery_error is not None:
        print(f"  Hidden states from logits: relative error {exported.recovery_error:.1g}.")
    else:
        print(f"  No hidden states from logits: {exported.bundle.settings.no_recovery}.")
    return 0
