"""The structures of training's calls, field by field (native/include/corral_native.h)."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p


class Product(ctypes.Structure):
    """A matrix product."""

    _fields_ = (
        ("type", c_int32),
        ("left_turned", c_int32),
        ("right_turned", c_int32),
        ("add", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("steps", c_int64),
        ("left", c_void_p),
        ("right", c_void_p),
        ("out", c_void_p),
        ("left_stride", c_int64),
        ("right_stride", c_int64),
        ("out_stride", c_int64),
    )


class Attention(ctypes.Structure):
    """Attention over documents side by side."""

    _fields_ = (
        ("type", c_int32),
        ("q_heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("scale", c_float),
        ("documents", c_int64),
        ("bounds", c_void_p),
        ("q", c_void_p),
        ("k", c_void_p),
        ("v", c_void_p),
        ("out", c_void_p),
        ("lse", c_void_p),
        ("out_grad", c_void_p),
        ("q_grad", c_void_p),
        ("k_grad", c_void_p),
        ("v_grad", c_void_p),
    )


class Norm(ctypes.Structure):
    """RMSNorm of rows."""

    _fields_ = (
        ("type", c_int32),
        ("eps", c_float),
        ("rows", c_int64),
        ("columns", c_int64),
        ("x", c_void_p),
        ("weight", c_void_p),
        ("out", c_void_p),
        ("scales", c_void_p),
        ("out_grad", c_void_p),
        ("x_grad", c_void_p),
        ("weight_grad", c_void_p),
    )


class Gate(ctypes.Structure):
    """silu(gate) * up."""

    _fields_ = (
        ("type", c_int32),
        ("count", c_int64),
        ("gate", c_void_p),
        ("up", c_void_p),
        ("out", c_void_p),
        ("out_grad", c_void_p),
        ("gate_grad", c_void_p),
        ("up_grad", c_void_p),
    )


class Rotation(ctypes.Structure):
    """Rotary embedding of heads."""

    _fields_ = (
        ("type", c_int32),
        ("heads", c_int32),
        ("head_dim", c_int32),
        ("back", c_int32),
        ("rows", c_int64),
        ("x", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("out", c_void_p),
    )


class TokenLoss(ctypes.Structure):
    """Log-probabilities of targets, and the gradient of logits."""

    _fields_ = (
        ("type", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("logits", c_void_p),
        ("targets", c_void_p),
        ("logprobs", c_void_p),
        ("normalizers", c_void_p),
        ("correct", c_void_p),
        ("coefficients", c_void_p),
    )
