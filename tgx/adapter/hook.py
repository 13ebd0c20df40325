"""The import hook: how tinygrad learns of TGX without the script's help.

tinygrad finds a device by importing `tinygrad.runtime.ops_<name>`, so a plugin has to be present at
that import. An installed tgx is: a `.pth` file beside it, which Python runs at start-up, imports
`tgx`, and that calls `arm()` below. All `arm` does is put one finder on `sys.meta_path`; what is
expensive waits until tinygrad itself is imported. The finder

* copies DEVICE to DEV just before tinygrad reads it;
* answers `tinygrad.runtime.ops_tgx` with our `tgx.devices.ops_tgx`;
* runs the functions of PATCHES on their modules of tinygrad, right after each was executed;
* turns a device nobody knows into an error that lists those that exist.

Worker processes that Python spawns run the `.pth` too, and so know TGX as their parent does.

One thing it cannot reach: `python -m tinygrad.device` executes a second copy of that module, with
its own list of devices, and does not show TGX. `tgx devices` does.
"""

import sys

# Every Python of this environment pays for this module: it imports nothing that is not loaded
# anyway, not even `typing` or `__future__`, and names types in quotes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# tinygrad's module -> the function that adjusts it, called once with the module
PATCHES = {
    "tinygrad.device": "tgx.adapter.patches:add_tgx",
    "tinygrad.engine.realize": "tgx.adapter.patches:keep_programs",
    "tinygrad.engine.jit": "tgx.adapter.jitcalls:quicken",
    "tinygrad.tensor": "tgx.adapter.patches:read_back_without_cpu",
    "tinygrad.nn.state": "tgx.adapter.patches:unzip_without_cpu",
    "tinygrad.runtime.ops_cpu": "tgx.adapter.patches:open_cpu_only_with_clang",
    "tinygrad": "tgx.recording:start_from_environment",  # where TGX_TRACE or TGX_COUNT is set
}

OPS = "tinygrad.runtime.ops_"


def arm() -> None:
    """Put the finder in place, once. Modules that are loaded already are patched now."""
    if any(type(finder).__name__ == Finder.__name__ for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, Finder())
    for name in PATCHES:
        if name in sys.modules:
            patch(sys.modules[name])


def patch(module: "ModuleType") -> None:
    """Run this module's row of PATCHES, if it is the module we know.

    A tinygrad we were not made for is left as it is: whoever then asks for TGX is told
    (`compat.check`), and whoever does not is not troubled.
    """
    from importlib import import_module

    from tgx.adapter import compat

    if compat.misfits(module.__name__):
        return
    where, _, name = PATCHES[module.__name__].partition(":")
    getattr(import_module(where), name)(module)


class Finder:
    """A meta-path finder for the few modules named above; all others it passes over."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if not name.startswith("tinygrad"):  # the line every import of every program pays for
            return None
        if name == "tinygrad":
            from tgx import settings

            settings.adopt_device()
            if settings.trace_dir() or settings.count():
                return self.patched(name, path, target)
        elif name == OPS + "tgx":
            from importlib.machinery import ModuleSpec

            return ModuleSpec(name, AliasLoader())  # type: ignore[arg-type]
        elif name in PATCHES:
            return self.patched(name, path, target)
        elif name.startswith(OPS):
            spec = self.ask_others(name, path, target)
            if spec is None:
                from tgx.adapter.devices import unknown_device

                raise unknown_device(name.removeprefix(OPS))
            return spec
        return None

    def patched(
        self, name: str, path: "Sequence[str] | None", target: "ModuleType | None"
    ) -> "ModuleSpec | None":
        """A module of PATCHES: found as ever, patched once it has been executed."""
        spec = self.ask_others(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = PatchingLoader(spec.loader)  # type: ignore[assignment]
        return spec

    def ask_others(
        self, name: str, path: "Sequence[str] | None", target: "ModuleType | None"
    ) -> "ModuleSpec | None":
        """What the import system would have found without us."""
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


class AliasLoader:
    """Loads `tinygrad.runtime.ops_tgx`: a second name for the module `tgx.devices.ops_tgx`.

    The classes stay in `tgx.devices`, under one name, because tinygrad's compile workers find
    them again by module name.
    """

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return None

    def exec_module(self, module: "ModuleType") -> None:
        from importlib import import_module

        from tgx.adapter import compat

        compat.check()
        sys.modules[module.__name__] = import_module("tgx.devices.ops_tgx")


class PatchingLoader:
    """Loads a module as its own loader would, then patches it."""

    def __init__(self, loader: object) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> object:  # get_code, get_source, ...: the real loader's
        return getattr(self.loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return self.loader.create_module(spec)  # type: ignore[attr-defined]

    def exec_module(self, module: "ModuleType") -> None:
        # From here on nothing shows that we were here: tools find the loader they expect.
        module.__loader__ = self.loader  # type: ignore[assignment]
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader  # type: ignore[assignment]
        self.loader.exec_module(module)  # type: ignore[attr-defined]
        patch(module)
