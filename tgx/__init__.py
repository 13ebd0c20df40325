"""tgx: a readable, fast LLVM device for tinygrad, and an explorer that explains its kernels.

    DEVICE=TGX python train.py        run any tinygrad script on it
    python -m tgx doctor              what works here, and what is missing

Importing this package arms the plugin (see `tgx.adapter.hook`): from then on tinygrad knows the
device TGX and the variable DEVICE. An installed tgx is imported at the start of every Python by a
one-line `.pth` file, so this module loads neither tinygrad nor anything else that costs time;
the public names below are fetched when first used.
"""

from tgx.adapter import hook

__version__ = "0.1.0"

# public name -> the module that defines it
PUBLIC: dict[str, str] = {
    "TgxError": "tgx.errors",
    "backward": "tgx.walking",
    "trace": "tgx.recording",
}

__all__ = ["TgxError", "__version__", "backward", "trace"]


def __getattr__(name: str) -> object:
    if name not in PUBLIC:
        raise AttributeError(f"module 'tgx' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})


hook.arm()
