"""Jobs for helping threads, without anybody ever waiting for one that does not come.

A caller claims a worker for the length of one call and offers it jobs, one after another: a function and its
argument. It does its own share, then collects: a job done in time is a gift; one that the worker has not begun is
taken back; one that is late is left alone. In the last two cases the caller computes that share itself. So a worker
that the system has put aside costs a moment, never a time slice, and a machine without a free core is as fast as one
thread.

A late job goes on while its caller has left it behind. It must therefore write to memory of its own and read nothing
as an index or a length that its caller may change meanwhile. Until the worker is through with a job, done or withdrawn,
it is offered no other: ``DONE`` equals ``TICKET`` only while it watches.

Callers:

    claimed = claim(block, owner)
    if not claimed:
        ask(block)
    for each step:
        if not claimed:
            claimed = claim(block, owner)    # it may have woken, or be free by now
        if claimed and offer(block, function, argument):
            ...                              # the own share
            if not collect(block, patience):
                ...                          # the other share too
        else:
            ...                              # both shares
    dismiss(block, owner, ticks())           # whether it was claimed or not
"""

from __future__ import annotations

from ..encoding import COMING, Worker
from ..jit import kernel
from .simd import (
    exchange,
    fence,
    flush_denormals,
    invoke,
    observe,
    pause,
    publish,
    release,
    restore_denormals,
    set_word,
    ticks,
    word,
)

(
    OWNER, LAST, BURST, ASKER, WITHDRAWN, REST, RESUME, WORKED, TICKET, FUNCTION, ARGUMENT, BEGUN, DONE, LASTED, AWAKE,
    STOP, WANTED, BELL, HOLD, SPIN, RISE, GRACE,
) = (int(w) * 8 for w in Worker)  # fmt: skip
MOST_REST = 32  # in times a worker watches without work: about a time slice of the system's


# --- callers ----------------------------------------------------------------------------------------------------------


@kernel
def claim(block, owner):  # type: ignore[no-untyped-def]
    """Have the worker to oneself; 1 if so, 0 if it sleeps or helps another caller. One that is being woken may come in
    time for the first job.
    """
    if observe(block + AWAKE) == 0 and observe(block + WANTED) != COMING:
        return 0
    return exchange(block + OWNER, 0, owner)


@kernel
def ask(block):  # type: ignore[no-untyped-def]
    """At the beginning of a call that could not claim the worker: have it woken afterwards, if it sleeps and calls have
    come so densely for so long that it will be used.
    """
    if observe(block + AWAKE) != 0:
        return
    now = ticks()
    if now - word(block + LAST) > word(block + SPIN):
        set_word(block + BURST, now)
        return
    dense = now - word(block + BURST) > word(block + RISE)
    if dense and now - word(block + HOLD) > 0 and observe(block + WANTED) == 0:
        publish(block + WANTED, 1)
        publish(word(block + BELL), 1)


@kernel
def free(block):  # type: ignore[no-untyped-def]
    """Whether the claimed worker is through with all it was given: 1 if so. Only then may a job's argument change."""
    if observe(block + DONE) != word(block + TICKET):
        return 0
    return 1


@kernel
def offer(block, function, argument):  # type: ignore[no-untyped-def]
    """The claimed worker shall call function(argument); 1 if it may come to it, 0 if it is still busy or too slow."""
    ticket = word(block + TICKET)
    if observe(block + DONE) != ticket:
        return 0
    if word(block + REST) != 0 and ticks() - word(block + RESUME) < 0:
        return 0
    set_word(block + ASKER, word(block + OWNER))
    set_word(block + FUNCTION, function)
    set_word(block + ARGUMENT, argument)
    publish(block + TICKET, ticket + 1)
    return 1


@kernel
def done_within(block, ticket, patience):  # type: ignore[no-untyped-def]
    """1 as soon as the worker is through with a job, 0 if it is not after so many ticks."""
    if observe(block + DONE) == ticket:
        return 1
    since = ticks()
    while ticks() - since < patience:
        pause()
        if observe(block + DONE) == ticket:
            return 1
    return 0


@kernel
def collect(block, patience):  # type: ignore[no-untyped-def]
    """1 if the job offered last was done within so many ticks from now; 0 if its share is the caller's to compute."""
    ticket = word(block + TICKET)
    grace = min(patience, word(block + GRACE))
    if done_within(block, ticket, grace) == 0:
        if exchange(block + BEGUN, ticket - 1, ticket) != 0:
            set_word(block + WITHDRAWN, ticket)
            return 0
        if done_within(block, ticket, patience - grace) == 0:
            # Its caches may be cold, or the system has put it aside; if it is but slow, longer rests keep that cheap.
            rest = min(2 * word(block + REST) + patience, MOST_REST * word(block + SPIN))
            set_word(block + REST, rest)
            set_word(block + RESUME, ticks() + rest)
            return 0
    set_word(block + WORKED, word(block + WORKED) + word(block + LASTED))
    set_word(block + REST, 0)
    return 1


@kernel
def dismiss(block, owner, now):  # type: ignore[no-untyped-def]
    """The end of a call that claimed the worker, or tried to."""
    if observe(block + OWNER) == owner:
        set_word(block + LAST, now)
        release(block + OWNER)
    elif observe(block + AWAKE) == 0:
        set_word(block + LAST, now)


# --- the worker -------------------------------------------------------------------------------------------------------


@kernel
def watching(block, idle):  # type: ignore[no-untyped-def]
    """Whether a worker still watches after so many ticks without a job: longer while it is claimed."""
    return idle < word(block + SPIN) or (idle < word(block + RISE) and observe(block + OWNER) != 0)


@kernel
def serve(block):  # type: ignore[no-untyped-def]
    """Do jobs until there have been none for a while."""
    control = flush_denormals()
    set_word(block + REST, 0)
    publish(block + WANTED, 0)
    publish(block + AWAKE, 1)
    through = word(block + DONE)
    since = ticks()
    while observe(block + STOP) == 0:
        ticket = observe(block + TICKET)
        if ticket != through:
            begun = ticks()
            if exchange(block + BEGUN, ticket - 1, ticket) != 0:
                invoke(word(block + FUNCTION), word(block + ARGUMENT))
            since = ticks()
            set_word(block + LASTED, since - begun)
            through = ticket
            publish(block + DONE, through)
        elif watching(block, ticks() - since):
            pause()
        else:
            publish(block + AWAKE, 0)
            fence()
            if observe(block + TICKET) == through:
                break
            publish(block + AWAKE, 1)  # somebody had claimed it before it lay down
    publish(block + AWAKE, 0)
    restore_denormals(control)
    return 0


@kernel
def clock():  # type: ignore[no-untyped-def]
    """The clock all times of a block are taken from."""
    return ticks()
