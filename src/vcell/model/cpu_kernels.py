"""Passes over a network's activations in bf16, each as one compiled loop for processors; used by `fused_cpu`.

Numbers are computed in float32, one operation after the other, and rounded to bf16 once, at the end: the same on every processor.
bf16 is the upper half of a float32, held as uint16. Division is never by zero, or means what IEEE says (`error_model`).
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numba import cfunc, njit, types

from vcell.model.fused_cpu import NORM_EPS
from vcell.model.torch_threads import array, next_rows, number, rows_of

LANES = 16  # sums that a row is added up in, side by side
f32, u32, bf16 = np.float32, np.uint32, np.uint16

_loop = cfunc(types.void(types.voidptr), cache=True, error_model="numpy")
_part = njit(nogil=True, cache=True, error_model="numpy")


@_part
def wide(half):
    """A bf16 number as float32."""
    return u32(u32(half) << u32(16)).view(f32)


@_part
def rounded(value):
    """A float32 number as bf16: to the nearest, and to the even one of two; NaN stays NaN."""
    bits = f32(value).view(u32)
    odd = u32(u32(bits >> u32(16)) & u32(1))
    up = u32(u32(bits + u32(0x7FFF)) + odd)
    return bf16(up >> u32(16)) if value == value else bf16(0x7FC0)


@_part
def exp(x):
    """e to the power x in float32, off by less than 2^-22 of itself: 2^k e^r, with e^r by a polynomial (Cephes, Moshier 1992)."""
    x = min(max(x, f32(-87.0)), f32(88.0))
    magic = f32(12582912.0)  # 1.5 x 2^23: a sum with it is rounded to a whole number, which its lowest bits hold
    shifted = x * f32(1.4426950408889634) + magic
    k = shifted - magic
    r = x - k * f32(0.693359375)
    r = r - k * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + f32(1)
    return p * u32(u32(f32(shifted).view(u32) + u32(127)) << u32(23)).view(f32)


@_part
def sigmoid(x):
    return f32(1) / (f32(1) + exp(-x))


@_part
def mixed(bits):
    """32 bits, each of which depends on all of those given (Wellons 2018, lowbias32)."""
    bits = u32(u32(bits ^ u32(bits >> u32(16))) * u32(0x7FEB352D))
    bits = u32(u32(bits ^ u32(bits >> u32(15))) * u32(0x846CA68B))
    return u32(bits ^ u32(bits >> u32(16)))


@_part
def total(lanes):
    found = f32(0)
    for k in range(LANES):
        found += lanes[k]
    return found


@_loop
def gated(given):
    """``silu(gate) * up`` of rows ``[gate, up]``. Told: width, gate_up, out."""
    rows, width = rows_of(given), number(given, 0)
    gate_up, out = array(given, 1, (rows, 2 * width), bf16), array(given, 2, (rows, width), bf16)
    first, last = next_rows(given)
    while first < last:
        for row in range(first, last):
            gate, up, into = gate_up[row, :width], gate_up[row, width:], out[row]
            for i in range(len(into)):
                g = wide(gate[i])
                into[i] = rounded(g * sigmoid(g) * wide(up[i]))
        first, last = next_rows(given)


@_loop
def gated_gradient(given):
    """The gradient of `gated`. Told: width, gate_up, gradient, into."""
    rows, width = rows_of(given), number(given, 0)
    gate_up, gradient = array(given, 1, (rows, 2 * width), bf16), array(given, 2, (rows, width), bf16)
    out = array(given, 3, (rows, 2 * width), bf16)
    first, last = next_rows(given)
    while first < last:
        for row in range(first, last):
            gate, up, by_out = gate_up[row, :width], gate_up[row, width:], gradient[row]
            by_gate, by_up = out[row, :width], out[row, width:]
            for i in range(len(by_out)):
                g, by = wide(gate[i]), wide(by_out[i])
                s = sigmoid(g)
                by_gate[i] = rounded(by * wide(up[i]) * s * (f32(1) + g * (f32(1) - s)))
                by_up[i] = rounded(by * g * s)
        first, last = next_rows(given)


@_loop
def dropped(given):
    """Numbers with some set to 0, the others larger to make up for it. Told: x, out, two halves of a seed, and of 2^32 how many fall out."""
    n = rows_of(given)
    x, out = array(given, 0, (n,), bf16), array(given, 1, (n,), bf16)
    low, high, fall = u32(number(given, 2)), u32(number(given, 3)), u32(number(given, 4))
    scale = f32(1 / (1 - number(given, 4) / 2**32))
    first, last = next_rows(given)
    while first < last:
        some, into, start = x[first:last], out[first:last], u32(first)
        for i in range(len(some)):
            bits = mixed(u32(mixed(u32(u32(u32(i) + start) ^ low)) + high))
            into[i] = rounded(wide(some[i]) * scale) if bits >= fall else bf16(0)
        first, last = next_rows(given)


@_part
def sum_of_products(x, y, lanes):
    """Of bf16 numbers, in an order that is the same on every processor."""
    lanes[:] = 0
    whole = len(x) // LANES * LANES
    for i in range(0, whole, LANES):
        for k in range(LANES):
            lanes[k] += wide(x[i + k]) * wide(y[i + k])
    for i in range(whole, len(x)):
        lanes[i - whole] += wide(x[i]) * wide(y[i])
    return total(lanes)


@_loop
def normed(given):
    """Rows over their root mean square, times weights. Told: width, x, weight (float32), out, and where 1 / root mean square goes (float32)."""
    rows, width = rows_of(given), number(given, 0)
    x, weight = array(given, 1, (rows, width), bf16), array(given, 2, (width,), f32)
    out, scales = array(given, 3, (rows, width), bf16), array(given, 4, (rows,), f32)
    lanes = np.empty(LANES, f32)
    first, last = next_rows(given)
    while first < last:
        for row in range(first, last):
            some, into = x[row], out[row]
            mean = sum_of_products(some, some, lanes) / f32(width)
            scale = f32(1) / f32(sqrt(mean + f32(NORM_EPS)))
            scales[row] = scale
            for i in range(len(into)):
                into[i] = rounded(wide(some[i]) * scale * weight[i])
        first, last = next_rows(given)


@_part
def _one_gradient(x, weight, scale, by_out, into, by_weight, lanes):
    lanes[:] = 0
    whole = len(x) // LANES * LANES
    for i in range(0, whole, LANES):
        for k in range(LANES):
            lanes[k] += wide(by_out[i + k]) * weight[i + k] * wide(x[i + k])
    for i in range(whole, len(x)):
        lanes[i - whole] += wide(by_out[i]) * weight[i] * wide(x[i])
    along = total(lanes) * scale * scale / f32(len(x))
    for i in range(len(x)):
        by, own = wide(by_out[i]), wide(x[i])
        by_weight[i] += by * own * scale
        into[i] = rounded((by * weight[i] - own * along) * scale)


@_loop
def normed_gradient(given):
    """The gradient of `normed`. Its "rows" are parts of the rows, each with sums of its own for the weights.

    Told: width, rows, x, weight, scales, gradient, into, by_weight (float32, ``(parts, width)``).
    """
    parts, width, rows = rows_of(given), number(given, 0), number(given, 1)
    x, weight = array(given, 2, (rows, width), bf16), array(given, 3, (width,), f32)
    scales, gradient = array(given, 4, (rows,), f32), array(given, 5, (rows, width), bf16)
    out, by_weight = array(given, 6, (rows, width), bf16), array(given, 7, (parts, width), f32)
    lanes = np.empty(LANES, f32)
    first, last = next_rows(given)
    while first < last:
        for part in range(first, last):
            by_weight[part] = 0
            for row in range(part * rows // parts, (part + 1) * rows // parts):
                _one_gradient(x[row], weight, scales[row], gradient[row], out[row], by_weight[part], lanes)
        first, last = next_rows(given)


@_part
def _largest(x, lanes):
    lanes[:] = x[0]
    whole = len(x) // LANES * LANES
    for i in range(0, whole, LANES):
        for k in range(LANES):
            lanes[k] = max(lanes[k], x[i + k])
    for i in range(whole, len(x)):
        lanes[0] = max(lanes[0], x[i])
    return lanes.max()


@_loop
def softmax(given):
    """Shares that add up to 1, of scores in float32 over the root of a head's width. Told: columns, width, scores, out."""
    rows, columns = rows_of(given), number(given, 0)
    scale = f32(1 / sqrt(number(given, 1)))
    scores, out = array(given, 2, (rows, columns), f32), array(given, 3, (rows, columns), bf16)
    lanes, whole = np.empty(LANES, f32), columns // LANES * LANES
    first, last = next_rows(given)
    while first < last:
        for row in range(first, last):
            some, into = scores[row], out[row]
            largest = _largest(some, lanes)
            lanes[:] = 0
            for i in range(0, whole, LANES):
                for k in range(LANES):
                    some[i + k] = exp((some[i + k] - largest) * scale)
                    lanes[k] += some[i + k]
            for i in range(whole, columns):
                some[i] = exp((some[i] - largest) * scale)
                lanes[i - whole] += some[i]
            share = f32(1) / total(lanes)
            for i in range(len(into)):
                into[i] = rounded(some[i] * share)
        first, last = next_rows(given)


@_loop
def softmax_gradient(given):
    """The gradient of `softmax`. Told: columns, width, shares, gradient, into."""
    rows, columns = rows_of(given), number(given, 0)
    scale = f32(1 / sqrt(number(given, 1)))
    shares, gradient = array(given, 2, (rows, columns), bf16), array(given, 3, (rows, columns), bf16)
    out = array(given, 4, (rows, columns), bf16)
    lanes = np.empty(LANES, f32)
    first, last = next_rows(given)
    while first < last:
        for row in range(first, last):
            share, by, into = shares[row], gradient[row], out[row]
            mean = sum_of_products(share, by, lanes)
            for i in range(len(into)):
                into[i] = rounded(wide(share[i]) * (wide(by[i]) - mean) * scale)
        first, last = next_rows(given)
