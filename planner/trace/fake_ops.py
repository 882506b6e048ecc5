"""Run operations on fake tensors with cached output shapes.

FakeTensorMode computes every call in Python, about 0.4 ms each, and a step makes tens of thousands. Here the output
shapes are cached per operation and input shapes. Operations that are not safe to cache (factories, random state,
collectives, changed metadata) go to FakeTensorMode each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

_CPU = torch.device("cpu")
_PLAIN = (int, float, bool, str, torch.dtype, torch.layout, torch.device, torch.memory_format, type(None))
_Shapes = tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype] | None, ...]


class FakeOps:
    """Run operations for one FakeTensorMode on CPU."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        # all fake tensors of a mode share their attributes; copying them takes a tenth of the constructor's time
        self._attributes = dict(FakeTensor(mode, torch.empty(1, device="meta"), _CPU).__dict__)
        self._kinds: dict[Any, str] = {}
        self._cache: dict[Any, tuple[_Shapes, bool]] = {}

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return `func(*args, **kwargs)`, with new or shared storages as the operation defines them."""
        kind = self._kinds.get(func) or self._kinds.setdefault(func, _kind(func))
        if kind == "other":
            return func(*args, **kwargs)
        if kind == "in place":  # only values would change, and fake tensors have none
            return args[0] if func._schema.returns else None
        if kind == "view":
            if not isinstance(args[0], FakeTensor):
                return func(*args, **kwargs)
            with in_kernel_invocation_manager(self._mode):
                return self._wrap(func(*args, **kwargs))
        return self._run_cached(func, args, kwargs)

    def _wrap(self, meta: Tensor) -> FakeTensor:
        fake = Tensor._make_subclass(  # type: ignore[attr-defined]
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=_CPU
        )
        fake.__dict__.update(self._attributes)
        return fake

    def _run_cached(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        key: list[Any] = [func]
        if not (_describe(args, key) and _describe(kwargs.items(), key)):
            return func(*args, **kwargs)
        cached = self._cache.get(frozen := tuple(key))
        if cached is not None:
            return self._make(*cached)
        result = func(*args, **kwargs)
        outputs = result if isinstance(result, tuple | list) else [result]
        if all(_is_fresh(output, args) for output in outputs):
            single = isinstance(result, Tensor)
            self._cache[frozen] = tuple(None if o is None else _metadata(o) for o in outputs), single
        return result

    def _make(self, shapes: _Shapes, single: bool) -> Any:
        with torch._C._DisableTorchDispatch():
            metas = [s and torch.empty_strided(s[0], s[1], dtype=s[2], device="meta") for s in shapes]
            outputs = [None if meta is None else self._wrap(meta) for meta in metas]
        return outputs[0] if single else tuple(outputs)


def _kind(func: Any) -> str:
    schema = func._schema
    if func.namespace != "aten" or torch.Tag.inplace_view in func.tags or func.overloadpacket.__name__ in (
        "set_", "resize_", "_local_scalar_dense",
    ):  # fmt: skip
        return "other"
    writes = [a.alias_info.is_write for a in schema.arguments if a.alias_info is not None]
    if any(writes):
        first = schema.arguments[0].alias_info
        returns_first = first is not None and first.is_write and len(schema.returns) <= 1 and ".out" not in str(func)
        return "in place" if (returns_first and len(writes) == 1) or not schema.returns else "other"
    if writes or func is torch.ops.aten._unsafe_view.default:  # a view that its schema does not declare
        return "view" if len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor" else "other"
    return "cacheable" if any("Tensor" in str(a.type) for a in schema.arguments) else "other"


def _describe(values: Any, key: list[Any]) -> bool:
    """Append to `key` everything in `values` that affects output shapes; return False if that is not known."""
    for value in values:
        if isinstance(value, FakeTensor):
            key += (value.shape, value.stride(), value.dtype)
        elif isinstance(value, _PLAIN):
            key += (type(value), value)
        elif isinstance(value, tuple | list):
            key.append(len(value))
            if not _describe(value, key):
                return False
        else:
            return False
    return True


def _metadata(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _is_fresh(output: Any, args: Sequence[Any]) -> bool:
    """Return whether `output` owns and fills its storage and is no argument, which contiguous() may return."""
    if output is None:
        return True
    if not isinstance(output, FakeTensor) or output.storage_offset():
        return False
    storage = output.untyped_storage()
    spanned = 1 + sum((n - 1) * s for n, s in zip(output.shape, output.stride(), strict=True)) if output.numel() else 0
    return storage.nbytes() == spanned * output.itemsize and not any(
        isinstance(a, Tensor) and a.untyped_storage()._cdata == storage._cdata for a in args
    )
