"""Drawing a token from a model's scores: from equal scores and an equal seed the same token on every machine.

All is float64 without fused products, and sums run from the first token to the last, so no instruction set decides a
bit. A token's place in the order is that of its score; of equals the first comes first.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir

from ..encoding import BUSY, RUNG, SAMPLER_BUSY, UNDRAWN, Context
from ..jit import kernel
from . import maths
from .draws import Draw, Scores
from .executor import FIRST_PORT, SECOND_PORT, called
from .simd import WIDTH, Lanes, clear_bytes, copy_bytes, int64, pointer, release, set_word, try_acquire, word

(
    RANDOM, TEMPERATURE, TOP_K, TOP_P, DRAWING, MIN_P, PENALTY, SEEN, SEEN_COUNT, RING, RING_SIZE, RING_AT,
    RING_FILLED,
) = (int(w) * 8 for w in Draw)  # fmt: skip
(
    COUNT, BYTES, PROBABILITIES, PLACE, CONTEXT, BACKUP, VALUES, WEIGHTS, KEPT, ORDER, INPUT, TOKEN, FAULT, BEST, TELL,
    TOLD, SUM,
) = (int(w) * 8 for w in Scores)  # fmt: skip
ARENA, BUSY_WORD, STATE_BYTES, SHADOW = (
    int(w) * 8 for w in (Context.ARENA, Context.BUSY, Context.STATE_BYTES, Context.SHADOW)
)
GOLDEN = 0x9E37_79B9_7F4A_7C15 - (1 << 64)
SMALLEST_NORMAL = 2.0**-1022
INFINITY = math.inf


class Rounded(Lanes):
    """Lanes that round every product, as those of a CPU without fused ones do."""

    fused = False


v = Rounded("float64")
_single = ir.VectorType(ir.FloatType(), WIDTH)


def _log(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """ln x; what is too small to be a normal number counts as 0."""
    tiny = b.and_(b.fcmp_ordered(">=", x, v.constant(0.0)), b.fcmp_ordered("<", x, v.constant(SMALLEST_NORMAL)))
    return maths.log(v, b, b.select(tiny, v.constant(0.0), x))


def _mixed(b: ir.IRBuilder, state: ir.Value) -> ir.Value:
    """What SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) makes of its counter."""
    for shift, factor in ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)):
        state = b.mul(b.xor(state, b.lshr(state, int64(shift))), int64(factor - (1 << 64)))
    return b.xor(state, b.lshr(state, int64(31)))


def _uniform(b: ir.IRBuilder, state: ir.Value) -> ir.Value:
    """A multiple of 2⁻⁵³ in [0, 1)."""
    whole = b.sitofp(b.lshr(_mixed(b, state), int64(11)), ir.DoubleType())
    return b.fmul(whole, ir.Constant(ir.DoubleType(), 2.0**-53))


def _scalar(kind: ir.Type, size: int) -> Any:
    def emit(b: ir.IRBuilder, at: ir.Value) -> ir.Value:
        read = b.load(pointer(b, at), typ=kind, align=size)
        return read if size == 8 else b.fpext(read, ir.DoubleType())

    return emit


load = v.intrinsic(lambda b, at: v.load(b, at, aligned=False), "a", "v")
widened = v.intrinsic(lambda b, at: b.fpext(b.load(pointer(b, at), typ=_single, align=4), v.vector), "a", "v")
store = v.intrinsic(lambda b, at, x: v.store(b, x, at, aligned=False), "av", "")
splat = v.intrinsic(v.splat, "s", "v")
most = v.intrinsic(v.most, "vv", "v")
greatest_lane = v.intrinsic(v.reduce_most, "v", "s")
lane_sum = v.intrinsic(v.reduce_add, "v", "s")
add = v.intrinsic(lambda b, x, y: b.fadd(x, y), "vv", "v")
log = v.intrinsic(_log, "v", "v")
#: e^((x - best) / temperature)
powers = v.intrinsic(lambda b, x, best, t: maths.exp(v, b, b.fdiv(b.fsub(x, best), t)), "vvv", "v")
number = v.intrinsic(_scalar(ir.DoubleType(), 8), "a", "s")
narrow = v.intrinsic(_scalar(ir.FloatType(), 4), "a", "s")
set_number = v.intrinsic(lambda b, at, x: b.store(x, pointer(b, at), align=8), "as", "")
uniform = v.intrinsic(_uniform, "a", "s")


# --- scores ----------------------------------------------------------------------------------------------------------


@kernel
def lay_out(scores, place):  # type: ignore[no-untyped-def]
    """The scores at ``place`` as logarithms in VALUES, -inf behind them up to a whole vector."""
    count, size, values = word(scores + COUNT), word(scores + BYTES), word(scores + VALUES)
    probabilities = word(scores + PROBABILITIES)
    i = 0
    while i + WIDTH <= count:
        if size == 4:
            store(values + 8 * i, widened(place + 4 * i))
        else:
            store(values + 8 * i, load(place + 8 * i))
        i += WIDTH
    while i < count:
        if size == 4:
            set_number(values + 8 * i, narrow(place + 4 * i))
        else:
            set_number(values + 8 * i, number(place + 8 * i))
        i += 1
    nothing = 0.0 if probabilities != 0 else -INFINITY
    while i % WIDTH != 0:
        set_number(values + 8 * i, nothing)
        i += 1
    if probabilities != 0:
        end = values + 8 * i
        at = values
        while at < end:
            store(at, log(load(at)))
            at += 8 * WIDTH


@kernel
def greatest(values, count):  # type: ignore[no-untyped-def]
    """The greatest value; NaN where there is one."""
    best = splat(-INFINITY)
    i = 0
    while i < count:
        best = most(best, load(values + 8 * i))
        i += WIDTH
    return greatest_lane(best)


@kernel
def penalise(draw, scores):  # type: ignore[no-untyped-def]
    """Keskar et al. (2019): scores of tokens that were read are divided by the penalty, negative ones multiplied."""
    penalty, seen, values = number(draw + PENALTY), word(draw + SEEN), word(scores + VALUES)
    i, end = 0, min(word(scores + COUNT), word(draw + SEEN_COUNT))
    while i < end:
        if word(seen + 8 * i) != 0:
            value = number(values + 8 * i)
            set_number(values + 8 * i, value / penalty if value > 0.0 else value * penalty)
        i += 1


@kernel
def weigh(scores, best, temperature):  # type: ignore[no-untyped-def]
    """WEIGHTS = e^((value - best) / temperature): 1 for the best."""
    values, weights, count = word(scores + VALUES), word(scores + WEIGHTS), word(scores + COUNT)
    top, scale = splat(best), splat(temperature)
    i = 0
    while i < count:
        store(weights + 8 * i, powers(load(values + 8 * i), top, scale))
        i += WIDTH


@kernel
def tell(scores, place, token):  # type: ignore[no-untyped-def]
    """What the token's log-probability is made of, in the model's own distribution."""
    lay_out(scores, place)
    values, weights, count = word(scores + VALUES), word(scores + WEIGHTS), word(scores + COUNT)
    best = greatest(values, count)
    weigh(scores, best, 1.0)
    total = splat(0.0)
    i = 0
    while i < count:
        total = add(total, load(weights + 8 * i))
        i += WIDTH
    set_number(scores + TOLD, number(values + 8 * token) - best)
    set_number(scores + SUM, lane_sum(total))


# --- the most likely tokens ------------------------------------------------------------------------------------------


@kernel
def ahead(values, i, j):  # type: ignore[no-untyped-def]
    """Whether token i comes before token j: a greater value, of equals the first."""
    x, y = number(values + 8 * i), number(values + 8 * j)
    return x > y or (x == y and i < j)


@kernel
def sift(order, values, at, size):  # type: ignore[no-untyped-def]
    """Put the token at a node of a heap where it belongs below."""
    token = word(order + 8 * at)
    child = 2 * at + 1
    while child < size:
        best = word(order + 8 * child)
        if child + 1 < size:
            other = word(order + 8 * (child + 1))
            if ahead(values, other, best):
                child += 1
                best = other
        if not ahead(values, best, token):
            break
        set_word(order + 8 * at, best)
        at = child
        child = 2 * at + 1
    set_word(order + 8 * at, token)


@kernel
def heap(order, values, count):  # type: ignore[no-untyped-def]
    """All tokens, those that are ahead above the others."""
    i = 0
    while i < count:
        set_word(order + 8 * i, i)
        i += 1
    i = count // 2
    while i > 0:
        i -= 1
        sift(order, values, i, count)


@kernel
def take(order, values, size):  # type: ignore[no-untyped-def]
    """The first token of a heap of this size, which goes behind what is left of it."""
    first = word(order)
    set_word(order, word(order + 8 * (size - 1)))
    sift(order, values, 0, size - 1)
    set_word(order + 8 * (size - 1), first)
    return first


@kernel
def sum_of(numbers, count):  # type: ignore[no-untyped-def]
    """The sum from the first to the last."""
    total = 0.0
    i = 0
    while i < count:
        total += number(numbers + 8 * i)
        i += 1
    return total


@kernel
def keep_likely(draw, scores):  # type: ignore[no-untyped-def]
    """KEPT: the weights of the top_k greatest, and of those the fewest that make up top_p of their sum."""
    values, weights, kept, order = (
        word(scores + VALUES),
        word(scores + WEIGHTS),
        word(scores + KEPT),
        word(scores + ORDER),
    )
    count, part = word(scores + COUNT), number(draw + TOP_P)
    most_kept = min(word(draw + TOP_K), count)
    clear_bytes(kept, 8 * count)
    heap(order, values, count)
    taken = 0
    if most_kept < count:
        while taken < most_kept:
            token = take(order, values, count - taken)
            set_number(kept + 8 * token, number(weights + 8 * token))
            taken += 1
    if part >= 1.0:
        return
    wanted = part * sum_of(kept if most_kept < count else weights, count)
    reached = 0.0
    i = 0
    while i < most_kept and reached < wanted:
        if i == taken:
            take(order, values, count - taken)
            taken += 1
        token = word(order + 8 * (count - 1 - i))
        weight = number(weights + 8 * token)
        set_number(kept + 8 * token, weight)
        reached += weight
        i += 1
    while i < taken:
        set_number(kept + 8 * word(order + 8 * (count - 1 - i)), 0.0)
        i += 1


# --- drawing ---------------------------------------------------------------------------------------------------------


@kernel
def place_of(sums, count, wanted):  # type: ignore[no-untyped-def]
    """The first place where a growing sum is above what is wanted; ``count`` if none is."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if number(sums + 8 * middle) > wanted:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def by_chance(draw, scores, weights):  # type: ignore[no-untyped-def]
    """A token with a chance in proportion to its weight, of those of at least min_p of the greatest, which is 1."""
    sums, count, least = word(scores + VALUES), word(scores + COUNT), number(draw + MIN_P)
    total = 0.0
    last = 0
    i = 0
    while i < count:
        weight = number(weights + 8 * i)
        counted = weight if weight >= least else 0.0
        last = i if counted > 0.0 else last  # choices, not branches: which weights are 0 is not to be guessed
        total += counted
        set_number(sums + 8 * i, total)
        i += 1
    state = word(draw + RANDOM) + GOLDEN
    set_word(draw + RANDOM, state)
    # Rounding can make the product the whole sum, which lies behind the last token that has a weight.
    return min(place_of(sums, count, uniform(state) * total), last)


@kernel
def choose(draw, scores, place):  # type: ignore[no-untyped-def]
    """A token for the scores at ``place``; -1 if the greatest is no finite number."""
    lay_out(scores, place)
    values, count = word(scores + VALUES), word(scores + COUNT)
    best = greatest(values, count)
    if number(draw + PENALTY) != 1.0 and best - best == 0.0:
        penalise(draw, scores)
        best = greatest(values, count)
    set_number(scores + BEST, best)
    if best - best != 0.0:
        return -1
    temperature = number(draw + TEMPERATURE)
    if temperature == 0.0:
        token = 0
        while number(values + 8 * token) != best:
            token += 1
    else:
        weigh(scores, best, temperature)
        if word(draw + TOP_K) < count or number(draw + TOP_P) < 1.0:
            keep_likely(draw, scores)
            token = by_chance(draw, scores, word(scores + KEPT))
        else:
            token = by_chance(draw, scores, word(scores + WEIGHTS))
    if word(scores + TELL) != 0:
        tell(scores, place, token)
    return token


# --- what was read ---------------------------------------------------------------------------------------------------


@kernel
def remember(draw, token):  # type: ignore[no-untyped-def]
    """A token was read. What forget() needs to undo it: what left the window, or was there; -1: nothing."""
    if token < 0 or token >= word(draw + SEEN_COUNT):
        return -1
    seen, size = word(draw + SEEN), word(draw + RING_SIZE)
    if size == 0:
        before = word(seen + 8 * token)
        set_word(seen + 8 * token, 1)
        return before
    ring, at = word(draw + RING), word(draw + RING_AT)
    left = -1
    if word(draw + RING_FILLED) == size:
        left = word(ring + 8 * at)
        set_word(seen + 8 * left, word(seen + 8 * left) - 1)
    else:
        set_word(draw + RING_FILLED, word(draw + RING_FILLED) + 1)
    set_word(ring + 8 * at, token)
    set_word(seen + 8 * token, word(seen + 8 * token) + 1)
    set_word(draw + RING_AT, at + 1 if at + 1 < size else 0)
    return left


@kernel
def forget(draw, token, before):  # type: ignore[no-untyped-def]
    """Undo remember(), which returned ``before``."""
    if token < 0 or token >= word(draw + SEEN_COUNT):
        return
    seen, size = word(draw + SEEN), word(draw + RING_SIZE)
    if size == 0:
        set_word(seen + 8 * token, before)
        return
    ring, at = word(draw + RING), word(draw + RING_AT)
    at = at - 1 if at > 0 else size - 1
    set_word(draw + RING_AT, at)
    set_word(seen + 8 * token, word(seen + 8 * token) - 1)
    if before < 0:
        set_word(draw + RING_FILLED, word(draw + RING_FILLED) - 1)
    else:
        set_word(ring + 8 * at, before)
        set_word(seen + 8 * before, word(seen + 8 * before) + 1)


@kernel
def chosen_after(draw, scores, place, token):  # type: ignore[no-untyped-def]
    """Having read ``token`` (negative: nothing), choose the next. -1 if none can be chosen: nothing has happened."""
    before = remember(draw, token)
    chosen = choose(draw, scores, place)
    if chosen < 0:
        forget(draw, token, before)
    return chosen


# --- the ways in from Python -----------------------------------------------------------------------------------------


@kernel
def read(draw, tokens, count):  # type: ignore[no-untyped-def]
    """These tokens, a word each, were read."""
    if try_acquire(draw + DRAWING) == 0:
        return SAMPLER_BUSY
    i = 0
    while i < count:
        remember(draw, word(tokens + 8 * i))
        i += 1
    release(draw + DRAWING)
    return 0


@kernel
def draw_one(draw, scores, place, token):  # type: ignore[no-untyped-def]
    """As chosen_after(); -1 with the reason in FAULT."""
    if try_acquire(draw + DRAWING) == 0:
        set_word(scores + FAULT, SAMPLER_BUSY)
        return -1
    chosen = chosen_after(draw, scores, place, token)
    release(draw + DRAWING)
    set_word(scores + FAULT, UNDRAWN if chosen < 0 else 0)
    return chosen


@kernel
def draw_rows(samplers, scores, place, row, count, tokens):  # type: ignore[no-untyped-def]
    """A token for each row of scores (``row`` bytes apart) that has a sampler (the address of its words, else 0).

    ``tokens``: a word a row, the token that was read, then the one that was drawn. Rows are drawn up to the first that
    has none; how many were.
    """
    i = 0
    while i < count:
        draw = word(samplers + 8 * i)
        if draw != 0:
            chosen = draw_one(draw, scores, place + row * i, word(tokens + 8 * i))
            if chosen < 0:
                return i
            set_word(tokens + 8 * i, chosen)
        i += 1
    return count


@kernel
def step_and_draw(draw, scores, token):  # type: ignore[no-untyped-def]
    """A step of a stream with this token, and the next one drawn from its scores.

    -1 where FAULT has more to say: a token was drawn all the same (RUNG), or nothing has happened.
    """
    cx, place = word(scores + CONTEXT), word(scores + PLACE)
    fault = SAMPLER_BUSY
    if try_acquire(draw + DRAWING) != 0:
        fault = BUSY
        if try_acquire(cx + BUSY_WORD) != 0:
            set_word(scores + INPUT, token)
            set_word(cx + FIRST_PORT, scores + INPUT)
            set_word(cx + SECOND_PORT, place)
            arena, size = word(cx + ARENA), word(cx + STATE_BYTES)
            kept = arena + word(cx + SHADOW)
            if kept == arena:
                kept = word(scores + BACKUP)
                copy_bytes(kept, arena, size)
            fault = called(cx)
            if fault == 0 or fault == RUNG:
                chosen = chosen_after(draw, scores, place, token)
                set_word(scores + TOKEN, chosen)
                if chosen < 0:
                    copy_bytes(arena, kept, size)
                    fault = UNDRAWN
            release(cx + BUSY_WORD)
        release(draw + DRAWING)
    set_word(scores + FAULT, fault)
    return word(scores + TOKEN) if fault == 0 else -1


def ways_in() -> dict[str, Any]:
    """The ways in from Python, by name."""
    return {"step_and_draw": step_and_draw, "draw_one": draw_one, "draw_rows": draw_rows, "read": read}
