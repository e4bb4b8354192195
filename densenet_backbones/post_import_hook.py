"""Registers our networks when timm is imported, in programs that know nothing of this package.

Nothing here imports this file. `densenet_backbones.install_hook` copies it into a site directory,
beside a ``.pth`` file that calls `wait_for_timm` at every start of Python. So it stands alone,
imports nothing that a bare interpreter has not loaded already, and must never raise.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own would import typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

PACKAGE = "densenet_backbones"
SWITCH = "DENSENET_BACKBONES_HOOK"
"""Environment variable; "0" when Python starts switches the hook off."""


def wait_for_timm() -> None:
    """Register our networks as soon as timm has been imported; at once if it has been already."""
    if os.environ.get(SWITCH) == "0":
        return
    if "timm" in sys.modules:
        _register()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())


class _TimmFinder:
    """Finds timm through all other finders, and gives it a loader that tells us of its end.

    It waits for ``timm``, not for ``timm.models``: that one is complete while timm is not yet.
    """

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        if name != "timm":
            return None
        for finder in list(sys.meta_path):
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                # A folder named timm without __init__.py has no such loader, and is not timm.
                if hasattr(spec.loader, "exec_module") and not isinstance(spec.loader, _Loader):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None


class _Loader:
    """timm's own loader in all but the end of `exec_module`; steps aside when that begins."""

    def __init__(self, real: "Any", finder: _TimmFinder) -> None:
        self._real = real
        self._finder = finder

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__") or name == "_real":  # not while a copy is being made
            raise AttributeError(name)
        return getattr(self._real, name)

    def exec_module(self, module: "ModuleType") -> None:
        if module.__spec__ is not None and module.__spec__.loader is self:
            module.__spec__.loader = self._real
        if vars(module).get("__loader__") is self:
            module.__loader__ = self._real
        self._real.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        _register()


def _register() -> None:
    if PACKAGE in sys.modules:  # it imports timm itself, and is registering
        return
    try:
        __import__(PACKAGE)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == PACKAGE:
            return  # uninstalled, or not meant for this program's path
        _warn(
            f"timm lacks the networks of {PACKAGE}, whose import failed with "
            f"{type(error).__name__}: {error}; repair it, or delete densenet_backbones_hook.pth "
            f"in {os.path.dirname(os.path.abspath(__file__))}"
        )


def _warn(message: str) -> None:
    import warnings

    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except Warning:  # warnings are errors here, but timm must go on
        print(message, file=sys.stderr)
