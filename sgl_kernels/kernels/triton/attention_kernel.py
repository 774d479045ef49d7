"""Flash attention forward: one kernel for dense, varlen and int8 scores, masks, windows, GQA and lse.

Scores never reach memory: each program owns BLOCK_M queries of one head and walks the keys in tiles of BLOCK_N with a
running maximum and sum. Key tiles that every query of the program sees in full skip all comparisons; only the tiles
on the edge of the causal diagonal, the window or the sequence pay for them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import LN2, LOG2E, narrow, tanh

NO_MASK, BOOL_MASK, FLOAT_MASK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BOTTOM_RIGHT, TOP_LEFT = tl.constexpr(1), tl.constexpr(2)
LOWEST = tl.constexpr(-3.4028234663852886e38)
NEGATIVE_ZERO = tl.constexpr(-(2**31))  # the bits of -0.0


@triton.jit
def _load(ptrs, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A tile, compared against its bounds only where it may cross them."""
    if ROWS and COLS:
        tile = tl.load(ptrs, mask=rows & cols, other=0)
    elif ROWS:
        tile = tl.load(ptrs, mask=rows, other=0)
    elif COLS:
        tile = tl.load(ptrs, mask=cols, other=0)
    else:
        tile = tl.load(ptrs)
    return tile


@triton.jit
def _attend(
    acc, total, peak, q, q_scale, k_head, v_head, k_scale_head, mask_head, begin, end, rows, lanes,
    seq_q, seq_k, low, high, stride_kn, stride_vn, stride_mm, stride_mn, factor, softcap,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    EDGE: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, MASK: tl.constexpr, SOFTCAP: tl.constexpr,
    INT8: tl.constexpr, FP32_DOT: tl.constexpr, UPCAST: tl.constexpr, GUARD: tl.constexpr,
):  # fmt: skip
    """Folds keys [begin, end) into (acc, total, peak); `begin` is a multiple of BLOCK_N.

    Scores and `peak` are in units of log2, so the weights are exp2 of one fused multiply-add. Float masks keep natural
    units: torch.finfo(float32).min, a common "hidden", would overflow to -inf when multiplied by log2(e) and turn
    an evenly hidden row (uniform weights) into an empty one.

    GUARD: what stands in a hidden key, were it NaN, reaches no row, and what is seen still makes a row NaN.
    """
    # Nothing else can be hidden: keys behind the last are loaded as zeros.
    GUARDED: tl.constexpr = GUARD and (MASK != NO_MASK or (EDGE and (LOW or HIGH)))
    cols = tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    dims_v = tl.arange(0, BLOCK_DV)
    first = tl.cast(begin, tl.int64)
    k_head += first * stride_kn
    v_head += first * stride_vn
    if MASK != NO_MASK:
        mask_head += first * stride_mn
    k_offsets = dims[:, None] + cols[None, :] * stride_kn
    v_offsets = cols[:, None] * stride_vn + dims_v[None, :]
    mask_offsets = lanes[:, None] * stride_mm + cols[None, :] * stride_mn
    for start in range(begin, end, BLOCK_N):
        keys = start + cols
        exists = keys < seq_k
        k = _load(k_head + k_offsets, exists[None, :], dims[:, None] < D, EDGE, BLOCK_D != D)
        if INT8:
            k_scale = tl.load(k_scale_head + start // BLOCK_N)
            raw = tl.dot(q, k, out_dtype=tl.int32).to(tl.float32) * (q_scale * k_scale)[:, None]
        elif UPCAST:
            # numpy's fp32 product of 128 terms errs by 2.0e-7, which took whole calls to 5.8e-7 (torch: 2.5e-7). Its
            # order of summation is no device's, so this sum is fp64 here; the second product stays fp32.
            raw = tl.dot(q, k.to(tl.float32).to(tl.float64), out_dtype=tl.float64).to(tl.float32)
        else:
            raw = tl.dot(q, k, input_precision=FP32_DOT)

        if MASK == NO_MASK and not SOFTCAP and not EDGE:
            # factor >= 0 (the launcher moves a sign into q), so the maximum commutes with it.
            ahead = tl.maximum(peak, tl.max(raw, 1) * factor)
            level = tl.where(ahead == float("-inf"), 0.0, ahead)
            weights = tl.exp2(raw * factor - level[:, None])
        else:
            scores = raw * factor
            if SOFTCAP:
                scores = softcap * tanh(scores)
            if MASK == FLOAT_MASK:
                bias = _load(mask_head + mask_offsets, rows[:, None] < seq_q, exists[None, :], True, EDGE)
                bias = bias.to(tl.float32)
                scores += bias
                # A sum below the type is low, not hidden.
                scores = tl.where(scores < LOWEST, LOWEST, scores)
                scores = tl.where(bias == float("-inf"), float("-inf"), scores)
            if MASK == BOOL_MASK:
                seen = _load(mask_head + mask_offsets, rows[:, None] < seq_q, exists[None, :], True, EDGE)
                scores = tl.where(seen != 0, scores, float("-inf"))
            if EDGE:
                visible = exists[None, :]
                if HIGH:
                    visible = visible & (keys[None, :] <= rows[:, None] + high)
                if LOW:
                    visible = visible & (keys[None, :] >= rows[:, None] + low)
                scores = tl.where(visible, scores, float("-inf"))
            ahead = tl.maximum(peak, tl.max(scores, 1))
            level = tl.where(ahead == float("-inf"), 0.0, ahead)
            if MASK == FLOAT_MASK:
                weights = tl.exp2((scores - level[:, None]) * LOG2E)
            else:
                weights = tl.exp2(scores - level[:, None])
            if GUARDED:  # a literal -0.0 would become 0.0
                bits = weights.to(tl.int32, bitcast=True)
                bits = tl.where(scores == float("-inf"), NEGATIVE_ZERO, bits)
                weights = bits.to(tl.float32, bitcast=True)
        keep = tl.exp2((peak - level) * LOG2E) if MASK == FLOAT_MASK else tl.exp2(peak - level)
        total = total * keep + tl.sum(weights, 1)
        acc = acc * keep[:, None]
        v = _load(v_head + v_offsets, exists[:, None], dims_v[None, :] < DV, EDGE, BLOCK_DV != DV)
        if GUARDED:
            # A weight of 0 times what stands in a hidden key would be NaN: V loses what is not finite here, and the
            # rows that see such a key, whatever its weight rounds to, become NaN through their total. V comes through
            # registers for it, which sm_80 and sm_89 do not have (up to 2.4 kB of spills): see guards_v in configs.py.
            # Hidden is a weight of -0.0: to keep the scores until here spills up to 72 bytes on sm_100.
            finite = tl.abs(v.to(tl.float32)) < float("inf")
            v = tl.where(finite, v, tl.zeros_like(v))
            spoiled = tl.where(
                (tl.min(finite.to(tl.int32), 1) == 0)[None, :],
                weights.to(tl.int32, bitcast=True),
                NEGATIVE_ZERO,
            )
            total = tl.where(tl.max(spoiled, 1) >= 0, float("nan"), total)
        if UPCAST:
            acc = tl.dot(weights, v.to(tl.float32), acc)
        else:
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=FP32_DOT)
        peak = ahead
        k_head += BLOCK_N * stride_kn
        v_head += BLOCK_N * stride_vn
        if MASK != NO_MASK:
            mask_head += BLOCK_N * stride_mn
    return acc, total, peak


@triton.jit
def attention_kernel(
    Q, K, V, MASK_PTR, OUT, LSE, CU_Q, CU_K, Q_SCALE, K_SCALE,
    stride_qb, stride_qm, stride_qh, stride_kb, stride_kn, stride_kh, stride_vb, stride_vn, stride_vh,
    stride_ob, stride_om, stride_oh, stride_mb, stride_mh, stride_mm, stride_mn,
    heads, group, max_seq_q, max_seq_k, tokens, left, right, factor, softcap,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    MASK: tl.constexpr, SOFTCAP: tl.constexpr, NEGATE: tl.constexpr, VARLEN: tl.constexpr, WRITE_LSE: tl.constexpr,
    INT8: tl.constexpr, FP32_DOT: tl.constexpr, UPCAST: tl.constexpr, GUARD: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head of one sequence. Grid: blocks of a head first, so they share K, V.

    Packed sequences have one more, without keys: the tokens behind the last. Rows of it, and rows beyond the longest
    length that was promised, which has no programs for them, are zeros, shared out among the programs there are.
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(max_seq_q, BLOCK_M)
    if VARLEN:
        blocks = tl.maximum(blocks, 1)
    block = pid % blocks
    if CAUSAL:  # the longest rows first: the short ones fill the tail of the launch
        block = blocks - 1 - block
    head = (pid // blocks) % heads
    batch = tl.cast(pid // (blocks * heads), tl.int64)
    seq_q, seq_k = max_seq_q, max_seq_k
    q_first, k_first = batch * stride_qb, batch * stride_kb
    v_first, o_first = batch * stride_vb, batch * stride_ob
    computed = seq_q
    if VARLEN:
        sequences = tl.num_programs(0) // (blocks * heads) - 1
        behind = batch == sequences
        begin_q, begin_k = tl.load(CU_Q + batch).to(tl.int64), tl.load(CU_K + batch).to(tl.int64)
        end_q = tl.load(CU_Q + batch + 1, mask=batch < sequences, other=0).to(tl.int64)
        end_k = tl.load(CU_K + batch + 1, mask=batch < sequences, other=0).to(tl.int64)
        seq_q = (tl.where(behind, tokens, end_q) - begin_q).to(tl.int32)
        seq_k = tl.where(behind, 0, end_k - begin_k).to(tl.int32)
        computed = tl.where(behind, 0, seq_q)
        q_first, o_first = begin_q * stride_qm, begin_q * stride_om
        k_first, v_first = begin_k * stride_kn, begin_k * stride_vn
    row = block * BLOCK_M
    if VARLEN:
        lanes_v, width = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_DV)
        place = OUT + o_first + tl.cast(head, tl.int64) * stride_oh + width[None, :]
        nothing = tl.zeros((BLOCK_M, BLOCK_DV), OUT.dtype.element_ty)
        step = blocks * BLOCK_M
        for first in range(tl.where(behind, row, row + step), seq_q, step):
            spare = first + lanes_v
            inside = (spare < seq_q)[:, None] & (width < DV)[None, :]
            tl.store(place + spare.to(tl.int64)[:, None] * stride_om, nothing, mask=inside)
    if row < computed:
        row64, head64, kv_head = (
            tl.cast(row, tl.int64),
            tl.cast(head, tl.int64),
            tl.cast(head // group, tl.int64),
        )
        lanes = tl.arange(0, BLOCK_M)
        rows = row + lanes
        dims = tl.arange(0, BLOCK_D)
        dims_v = tl.arange(0, BLOCK_DV)

        q_ptrs = (
            Q + q_first + head64 * stride_qh + row64 * stride_qm + lanes[:, None] * stride_qm + dims[None, :]
        )
        q = _load(q_ptrs, rows[:, None] < seq_q, dims[None, :] < D, True, BLOCK_D != D)
        if UPCAST and not INT8:
            q = q.to(tl.float32).to(tl.float64)
        if NEGATE:
            q = -q
        q_scale = factor
        k_scale_head = K_SCALE
        if INT8:
            q_scale = tl.load(Q_SCALE + (batch * heads + head) * seq_q + rows, mask=rows < seq_q, other=0.0)
            k_scale_head += (batch * (heads // group) + kv_head) * tl.cdiv(seq_k, BLOCK_N)
        k_head = K + k_first + kv_head * stride_kh
        v_head = V + v_first + kv_head * stride_vh
        mask_head = MASK_PTR
        if MASK != NO_MASK:
            mask_head += batch * stride_mb + head64 * stride_mh + row64 * stride_mm

        # Key j is visible to query i if i + low <= j <= i + high. Whole tiles inside that band for every query of the
        # program are [full_begin, full_end); the band touches [begin, end).
        last = tl.minimum(row + BLOCK_M, seq_q) - 1
        shift = seq_k - seq_q
        low, high = 0, 0
        begin, full_begin = 0, 0
        end, full_end = seq_k, seq_k
        if CAUSAL == BOTTOM_RIGHT:
            high = shift
        if RIGHT:
            high = tl.minimum(high, shift + right) if CAUSAL else shift + right
        if CAUSAL or RIGHT:
            end = tl.minimum(seq_k, tl.maximum(last + high + 1, 0))
            full_end = tl.minimum(seq_k, tl.maximum(row + high + 1, 0))
        full_end = full_end // BLOCK_N * BLOCK_N
        if LEFT:
            low = shift - left
            begin = tl.maximum(row + low, 0) // BLOCK_N * BLOCK_N
            full_begin = tl.cdiv(tl.maximum(last + low, 0), BLOCK_N) * BLOCK_N

        acc = tl.zeros((BLOCK_M, BLOCK_DV), dtype=tl.float32)
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
        peak = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
        if LEFT:
            acc, total, peak = _attend(
                acc, total, peak, q, q_scale, k_head, v_head, k_scale_head, mask_head, begin,
                tl.minimum(full_begin, end), rows, lanes, seq_q, seq_k, low, high, stride_kn, stride_vn,
                stride_mm, stride_mn, factor, softcap, D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, True, LEFT, CAUSAL or RIGHT,
                MASK, SOFTCAP, INT8, FP32_DOT, UPCAST, GUARD,
            )  # fmt: skip
        acc, total, peak = _attend(
            acc, total, peak, q, q_scale, k_head, v_head, k_scale_head, mask_head, full_begin, full_end, rows, lanes,
            seq_q, seq_k, low, high, stride_kn, stride_vn, stride_mm, stride_mn, factor, softcap,
            D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, False, LEFT, CAUSAL or RIGHT, MASK, SOFTCAP, INT8, FP32_DOT, UPCAST,
            GUARD,
        )  # fmt: skip
        acc, total, peak = _attend(
            acc, total, peak, q, q_scale, k_head, v_head, k_scale_head, mask_head, tl.maximum(full_begin, full_end),
            end, rows, lanes, seq_q, seq_k, low, high, stride_kn, stride_vn, stride_mm, stride_mn, factor, softcap,
            D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, True, LEFT, CAUSAL or RIGHT, MASK, SOFTCAP, INT8, FP32_DOT, UPCAST,
            GUARD,
        )  # fmt: skip

        # total is exactly 0 only for a row that saw no key: the largest weight of any other row is 1.
        empty = total == 0.0
        out = acc / tl.where(empty, 1.0, total)[:, None]
        o_ptrs = (
            OUT
            + o_first
            + head64 * stride_oh
            + row64 * stride_om
            + lanes[:, None] * stride_om
            + dims_v[None, :]
        )
        kept = (rows[:, None] < seq_q) & (dims_v[None, :] < DV)
        tl.store(o_ptrs, narrow(out, OUT.dtype.element_ty, UPCAST), mask=kept)
        if WRITE_LSE:
            natural = peak if MASK == FLOAT_MASK else peak * LN2
            lse = tl.where(empty, float("-inf"), natural + tl.log(tl.where(empty, 1.0, total)))
            tl.store(LSE + (batch * heads + head) * seq_q + rows, lse, mask=rows < seq_q)
