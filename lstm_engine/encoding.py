"""How a Program is written down for the machine: opcodes, the words of each instruction, the context.

Shared by the lowering, which writes it, and the kernels, which read it. All words are int64. An
instruction is WORDS words: the opcode, then the fields below. An operand is an offset into the arena
or an address in the constants with the bit CONSTANT set (``constant(address)``). Strides and sizes are in
bytes unless a name says elements.

A tensor in the arena is rows: [T if timed][B][width], each row padded to whole vectors.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

WORDS: Final = 48  # words in an instruction
WORD_BYTES: Final = 8
INSTRUCTION_BYTES: Final = WORDS * WORD_BYTES
CONSTANT: Final = 1 << 62  # no address has this bit


class Opcode(IntEnum):
    """What an instruction does."""

    HALT = 0
    LOAD = 1  # rows from the caller's array
    STORE = 2  # rows to the caller's array
    COPY = 3  # rows within the arena, or from the constants
    EMBED = 4  # rows of a table by token id
    LSTM = 5  # one direction of a plain LSTM layer
    CELL = 6  # one direction of an LSTM layer with peepholes, clip, projection, lengths, other activations
    DENSE = 7  # x·W + b
    MAP = 8  # f(x), elementwise
    JOIN = 9  # f(x, y), elementwise
    SOFTMAX = 10  # along the row
    RECURRENT = 11  # one direction of a GRU or RNN layer
    CONVOLUTION = 12  # over the axes of each row
    REARRANGE = 13  # pieces of each row to other places of another
    REDUCE = 14  # sums, maxima or minima over elements of each row
    MATMUL = 15  # products of matrices that are both computed, within each row
    CONVERT = 16  # x as another kind of number
    INTEGERS = 17  # f(x, y) of integers, and comparisons
    SELECT = 18  # x or y by a condition
    PICK = 19  # elements of each row at computed places
    TRACED_LSTM = 20  # as LSTM, CELL and RECURRENT, and what they compute on the way is written down
    TRACED_CELL = 21
    TRACED_RECURRENT = 22


class Copy(IntEnum):
    """Fields of LOAD, STORE and COPY; LOAD reads, STORE writes the caller's array of PORT."""

    SOURCE = 1
    SOURCE_STEP = 2  # stride from one time step to the next
    SOURCE_ROW = 3
    TARGET = 4
    TARGET_STEP = 5
    TARGET_ROW = 6
    BYTES = 7  # of a row
    ROWS = 8  # per time step
    TIMED = 9
    LAST = 10  # take the block's last step of a timed source
    PORT = 11
    ONCE = 12  # in the first block of a call only


class Rearrange(IntEnum):
    """Fields of REARRANGE."""

    SOURCE = 1
    SOURCE_STEP = 2  # stride from one time step to the next
    SOURCE_ROW = 3
    TARGET = 4
    TARGET_STEP = 5
    TARGET_ROW = 6
    PIECES = 7  # table, in bytes within the row: source, target, length, how many alike, from one to the next of each
    COUNT = 8
    ROWS = 9  # per time step
    TIMED = 10


class Reduce(IntEnum):
    """Fields of REDUCE: of each group out[j] = f over k of x[place + OFFSETS[k]], times SCALE.

    With a code of class Extreme out[j] is k itself, an int64, and SCALE counts for nothing.
    """

    X = 1
    X_STRIDE = 2
    OUT = 3
    OUT_STRIDE = 4
    GROUPS = 5  # table: of one element the place in bytes, j and 0; or of the first of 16, and how far apart they lie
    COUNT = 6  # groups
    OFFSETS = 7  # table, in bytes
    DEPTH = 8  # elements each is made of, at least one
    FUNCTION = 9  # class Operation: ADD, MINIMUM, MAXIMUM; class Extreme, of single elements
    SCALE = 10  # bits of a float64
    ROWS = 11
    TIMED = 12


class Matmul(IntEnum):
    """Fields of MATMUL: COUNT products [M,K]·[K,N] in each row, both operands dense, their rows one after the other."""

    X = 1
    X_STRIDE = 2
    X_MATRIX = 3  # from one matrix to the next, 0: the same for all
    Y = 4
    Y_STRIDE = 5
    Y_MATRIX = 6
    OUT = 7
    OUT_STRIDE = 8
    COUNT = 9
    HEIGHT = 10  # M
    DEPTH = 11  # K
    WIDTH = 12  # N
    PACKED = 13  # scratch: a vector for each k
    TILE = 14  # scratch: a vector for each row of a product
    ZEROS = 15  # constant: one vector of zeros
    ROWS = 16
    TIMED = 17


class Embed(IntEnum):
    """Fields of EMBED."""

    TOKENS = 1
    TOKEN_STRIDE = 2
    TOKEN_BYTES = 3  # 4 or 8, of one id
    PER_ROW = 4  # ids in a row
    OUT = 5
    OUT_STRIDE = 6
    TABLE = 7
    TABLE_STRIDE = 8
    ENTRY_BYTES = 9
    VOCABULARY = 10
    ROWS = 11
    TIMED = 12


class Lstm(IntEnum):
    """Fields of LSTM and CELL; the words from PEEPHOLES to ZEROS are CELL's."""

    X = 1
    X_STRIDE = 2
    Y = 3
    Y_STRIDE = 4
    H = 5  # state h, one padded row a batch row
    H_STRIDE = 6
    C = 7
    C_STRIDE = 8
    WEIGHTS = 9  # [H/16] blocks: the part of x, the part of h (kernels/weights.py)
    BIAS = 10  # [H/16][4][16]
    INPUTS = 11
    RECURRENT = 12  # units read back: H, or P with a projection
    BLOCKS = 13  # ⌈H/16⌉
    ROWS = 14
    TIMED = 15
    REVERSE = 16
    PRE = 17  # hoisted input projections, HOIST steps of them
    HOIST = 18  # steps; 0 or 1: not hoisted
    GATES = 19  # scratch: ROWS × 4 vectors
    PEEPHOLES = 20  # [H/16][3][16] or -1
    CLIP = 21  # bits of a float64; 0.0: none
    ACTIVATIONS = 22  # address-free: word k holds function code of f, g, h at 8-bit places
    PARAMETERS = 23  # constant: alpha, beta of f, g, h as float64
    INPUT_FORGET = 24
    LENGTHS = 25  # int32 a row, or -1
    LENGTH_STRIDE = 26
    PROJECTION = 27  # [P/16][H][16] or -1
    PROJECTED_BLOCKS = 28
    HIDDEN = 29  # scratch: one padded row of o∘h(c) before the projection
    HIDDEN_UNITS = 30  # H, where a projection follows
    ZEROS = 31  # constant: one vector of zeros
    X_STEP = 32  # from one step to the next
    Y_STEP = 33
    INNER = 34  # steps along an axis within the rows, begun anew in each; 0: the program's own
    INNER_ROWS = 35  # batch rows within a row, where INNER is given
    X_OUTER = 36  # from row to row of the program, where a row holds several batch rows
    Y_OUTER = 37
    X_ROOM = 38  # scratch: HOIST steps of rows of x in the form the products take them, or -1
    H_ROOM = 39  # as much for h
    UNIT = 40  # h is never beyond ±1 if it does not begin there
    PARTS = 41  # shares that the units of a step are cut into, one of them the caller's own
    JOBS = 42  # scratch of nobody else: a Share for each other part, or -1
    STAGED = 43  # scratch of nobody else: c and h [ROWS][BLOCKS] and GATES for each other part, or -1
    PRE_STAGED = 44  # scratch of nobody else: a PRE for each other part, or -1
    TRACE = 45  # bytes from a row of y to [BLOCKS][6][16]: gates i, o, f, g, then c, h; where traced


TRACED_PARTS: Final = 6  # of an LSTM: i, o, f, g, c, h


class Job(IntEnum):
    """What a helper is to do."""

    PLAIN = 0  # units of a step of a plain LSTM layer
    GENERAL = 1  # of any other
    PROJECTIONS = 2  # input projections, of ROWS rows from X to OUT


class Share(IntEnum):
    """Words of a job for a helper: some units of one step of an LSTM layer, or of its input projections."""

    CODE = 0  # 0 tells it from a context
    KIND = 1  # class Job
    INSTRUCTION = 2
    CONTEXT = 3
    ROWS = 4
    FIRST = 5  # block of 16 units
    LAST = 6  # the block after the last
    FORWARD = 7
    WEIGHTS = 8
    WEIGHTS_STEP = 9
    X = 10
    X_STRIDE = 11
    INPUTS = 12
    H = 13
    H_STRIDE = 14
    RECURRENT = 15
    Z = 16
    Z_STRIDE = 17
    C = 18
    C_STRIDE = 19
    C_NEW = 20
    OUT = 21
    OUT_STRIDE = 22  # and of C_NEW
    GATES = 23


SHARE_WORDS: Final = 24


class Cell(IntEnum):
    """What RECURRENT computes of its sums."""

    RNN = 0
    GRU = 1  # the reset gate acts on h
    GRU_LINEAR = 2  # the reset gate acts on the product with h (linear_before_reset)


class Recurrent(IntEnum):
    """Fields of RECURRENT. Sums are planes of ⌈H/16⌉ vectors: one for the RNN, n_x, z, r, n_h for the GRU."""

    X = 1
    X_STRIDE = 2
    Y = 3
    Y_STRIDE = 4
    H = 5  # state h, one padded row a batch row
    H_STRIDE = 6
    W = 7  # as DENSE's weights: the first plane, or for the GRU the first three
    R = 8  # the RNN's plane; planes z, r (GRU) or z, r, n_h (GRU_LINEAR)
    R_CANDIDATE = 9  # plane n_x from r∘h, or -1
    BIAS = 10  # all planes
    INPUTS = 11
    UNITS = 12  # H
    VECTORS = 13  # ⌈H/16⌉
    ROWS = 14
    TIMED = 15
    REVERSE = 16
    SUMS = 17  # scratch: HOIST steps of ROWS rows of all planes
    HOIST = 18  # steps projected at once, at least 1
    CELL = 19
    CLIP = 20  # bits of a float64; 0.0: none
    ACTIVATIONS = 21  # function codes of f, g at 8-bit places
    PARAMETERS = 22  # constant: alpha, beta of f, g as float64
    LENGTHS = 23  # int32 a row, or -1
    LENGTH_STRIDE = 24
    RESET = 25  # scratch: ROWS planes of r∘h, or -1
    X_STEP = 26  # these as Lstm's
    Y_STEP = 27
    INNER = 28
    INNER_ROWS = 29
    X_OUTER = 30
    Y_OUTER = 31
    ROOM = 32  # as Dense's
    UNIT = 33  # h is never beyond ±1 if it does not begin there
    TRACE = 34  # bytes from a row of y to planes: of the GRU z, r, n, h, of the RNN h; where traced


class Dense(IntEnum):
    """Fields of DENSE."""

    X = 1
    X_STRIDE = 2
    OUT = 3
    OUT_STRIDE = 4
    WEIGHTS = 5  # blocks of 64 outputs, then blocks of 16 (kernels/weights.py)
    BIAS = 6
    DEPTH = 7  # K
    WIDE = 8  # blocks of 64 outputs
    NARROW = 9  # blocks of 16 outputs
    ROWS = 10
    TIMED = 11
    ROOM = 12  # scratch: rows in the form the products take them, or -1


PREPARED_AT_ONCE: Final = 64  # rows put into the form the products take them, where that is another
PLACES_AT_ONCE: Final = 24  # places of a convolution's output computed before they are put where they belong


class Convolution(IntEnum):
    """Fields of CONVOLUTION. Tables are int64 offsets in bytes.

    The lanes of a vector are 16 outputs at one place, or, where SPAN_COUNT is given, 16 neighbouring places of one.
    """

    X = 1
    X_STRIDE = 2
    OUT = 3
    OUT_STRIDE = 4
    WEIGHTS = 5  # of each group as DENSE's; [group][OUTPUTS][K] with spans
    BIAS = 6  # [group][whole vectors of outputs]; [group][OUTPUTS] with spans
    DEPTH = 7  # elements a place of the output is summed over: K
    GROUPS = 8
    GROUP_BYTES = 9  # of the (padded) row that a group of channels takes
    OUTPUTS = 10  # channels of a group's output
    VECTORS = 11  # ⌈OUTPUTS/16⌉
    PLACES = 12  # table: where in the (padded) row each place of the output begins to read
    COUNT = 13  # places
    OFFSETS = 14  # table: from there to each of the K elements
    TARGETS = 15  # table: where in a channel of the output each place goes
    PLANE = 16  # bytes of a channel of the output
    LINES = 17  # table: where each line of the row goes in the padded row
    LINE_COUNT = 18  # 0: no padding, the row is read as it is
    LINE_BYTES = 19
    PADDED = 20  # scratch: the padded row, or -1
    PADDED_BYTES = 21
    TILES = 22  # scratch: PLACES_AT_ONCE × 4 vectors, or -1 with spans
    ROWS = 23
    TIMED = 24
    SPANS = 25  # table: of 16 neighbouring places the first, as in PLACES and in TARGETS
    SPAN_COUNT = 26  # 0: the lanes are outputs
    FLOOR = 27  # bits of a float64: the least that is written (0 for a Relu), -inf: anything


class Map(IntEnum):
    """Fields of MAP."""

    X = 1
    X_STRIDE = 2
    OUT = 3
    OUT_STRIDE = 4
    WIDTH = 5  # elements
    ROWS = 6
    TIMED = 7
    FUNCTION = 8
    ALPHA = 9  # bits of a float64
    BETA = 10


class Join(IntEnum):
    """Fields of JOIN."""

    X = 1
    X_STEP = 2
    X_ROW = 3
    X_SINGLE = 4  # one element serves the whole row
    Y = 5
    Y_STEP = 6
    Y_ROW = 7
    Y_SINGLE = 8
    OUT = 9
    OUT_STEP = 10
    OUT_ROW = 11
    WIDTH = 12
    ROWS = 13
    TIMED = 14
    FUNCTION = 15


class Softmax(IntEnum):
    """Fields of SOFTMAX."""

    X = 1
    X_STRIDE = 2
    OUT = 3
    OUT_STRIDE = 4
    WIDTH = 5
    ROWS = 6
    TIMED = 7
    LOG = 8


class Kind(IntEnum):
    """What an element is, where it need not be of the executor's float type."""

    FLOAT = 0
    BOOL = 1
    INT8 = 2
    UINT8 = 3
    INT16 = 4
    UINT16 = 5
    INT32 = 6
    UINT32 = 7
    INT64 = 8


class Convert(IntEnum):
    """Fields of CONVERT."""

    X = 1
    X_STRIDE = 2
    OUT = 3
    OUT_STRIDE = 4
    WIDTH = 5
    ROWS = 6
    TIMED = 7
    FROM = 8  # class Kind
    TO = 9


class Integers(IntEnum):
    """Fields of INTEGERS: as JOIN's, and the kinds of both operands and of the result."""

    X = 1
    X_STEP = 2
    X_ROW = 3
    X_SINGLE = 4
    Y = 5
    Y_STEP = 6
    Y_ROW = 7
    Y_SINGLE = 8
    OUT = 9
    OUT_STEP = 10
    OUT_ROW = 11
    WIDTH = 12
    ROWS = 13
    TIMED = 14
    FUNCTION = 15  # class Comparison
    KIND = 16
    OUT_KIND = 17


class Select(IntEnum):
    """Fields of SELECT: out = x where the condition (bool) holds, else y."""

    CONDITION = 1
    CONDITION_STEP = 2
    CONDITION_ROW = 3
    CONDITION_SINGLE = 4
    X = 5
    X_STEP = 6
    X_ROW = 7
    X_SINGLE = 8
    Y = 9
    Y_STEP = 10
    Y_ROW = 11
    Y_SINGLE = 12
    OUT = 13
    OUT_STEP = 14
    OUT_ROW = 15
    WIDTH = 16
    ROWS = 17
    TIMED = 18
    KIND = 19  # of integers as large as what is chosen


class Pick(IntEnum):
    """Fields of PICK: pieces of a step's rows to a step's rows of the result, their places computed."""

    X = 1
    X_STEP = 2
    INDEX = 3
    INDEX_STEP = 4
    INDEX_BYTES = 5  # 4 or 8, of one index
    OUT = 6
    OUT_STEP = 7
    PIECES = 8  # table: of each piece the source at index 0, its index, the target, its bytes
    COUNT = 9
    ALONG = 10  # bytes from what one index means to what the next means
    LIMIT = 11  # indices lie from -LIMIT to LIMIT - 1; 0: the steps of the call
    TIMED = 12


class Function(IntEnum):
    """Codes of elementwise functions of one argument; the first are the LSTM's gate activations too."""

    SIGMOID = 0
    TANH = 1
    RELU = 2
    AFFINE = 3
    LEAKY_RELU = 4
    THRESHOLDED_RELU = 5
    SCALED_TANH = 6
    HARD_SIGMOID = 7
    ELU = 8
    SOFTSIGN = 9
    SOFTPLUS = 10
    EXP = 11
    LOG = 12
    NEGATE = 13
    ABSOLUTE = 14
    SQRT = 15
    RECIPROCAL = 16
    BOUND = 17  # Clip


class Operation(IntEnum):
    """Codes of elementwise functions of two arguments."""

    ADD = 0
    SUBTRACT = 1
    MULTIPLY = 2
    DIVIDE = 3
    MINIMUM = 4
    MAXIMUM = 5
    RECTIFY = 6  # x where it is positive, else x·y (PRelu)


class Comparison(IntEnum):
    """Codes of INTEGERS; of floats only EQUAL and those with LESS."""

    ADD = 0
    SUBTRACT = 1
    MULTIPLY = 2
    MINIMUM = 3  # and, of booleans
    MAXIMUM = 4  # or, of booleans
    EQUAL = 5
    DIFFERENT = 6  # xor, of booleans
    LESS = 7
    LESS_OR_EQUAL = 8


class Extreme(IntEnum):
    """Codes of REDUCE beside Operation's: which of the elements is greatest or least, as an int64."""

    FIRST_GREATEST = 16
    LAST_GREATEST = 17
    FIRST_LEAST = 18
    LAST_LEAST = 19


class Context(IntEnum):
    """Words of the context, the one argument of the executor."""

    CODE = 0
    ARENA = 1
    CONSTANTS = 2
    EXECUTOR = 3  # address of the compiled executor
    BUSY = 4  # 1 while a caller has the context to itself
    STEPS = 5  # of this block
    TOTAL = 6  # steps of this call
    BLOCK = 7  # steps a block has room for
    DONE = 8  # steps of the caller's arrays before this block
    PARITY = 9  # steps since the beginning, for the zig-zag walk
    STATE_BYTES = 10
    SHADOW = 11  # where the state is kept while a call that may fail runs; 0: it cannot fail
    FAULT_AT = 12  # address of the instruction that failed
    FAULT_VALUE = 13
    FAULT_LIMIT = 14
    FORMS = 15  # address of the array forms (class Form) of the first two ports
    START = 16  # steps of the caller's arrays that earlier calls have dealt with
    HELPERS = 17  # address of the first helping thread's block (class Worker)
    HELPER_COUNT = 18  # how many there are, one behind the other
    BELL = 19  # address of the word that says whether one is to be woken; 0: there are none
    CLAIMED = 20  # helpers that this call has to itself by now
    PORTS = 21  # three words a port


class Port(IntEnum):
    """Words of a port: one array of the caller."""

    ADDRESS = 0
    STEP = 1
    ROW = 2


PORT_WORDS: Final = 3
MOST_AXES: Final = 8  # of an array that a Form describes


class Pool(IntEnum):
    """Words of a call over slots of a pool: how many rows run together, and where each keeps its state.

    A record is the state of one slot. A row of the context's arena is one slot's while it runs.
    """

    CONTEXT = 0  # address: of a program of ROWS rows
    HANDLES = 1  # address: int64[COUNT], number of times the slot was opened << 32 | slot
    COUNT = 2
    LENGTHS = 3  # address: int64[COUNT], steps of each, the longest first; 0: one step each
    RECORDS = 4  # address: int64[SLOTS], of each slot's record
    OPENED = 5  # address: int64[SLOTS], how often it was opened, negative while it is closed
    CALLS = 6  # address: int64[SLOTS], number of the last call it took part in
    CALL = 7  # number of this call
    SLOTS = 8
    ROWS = 9  # slots that run together
    LIVE = 10  # rows that the program is set to now
    PIECES = 11  # table of PIECE_COUNT: place in the record, place in the arena, bytes from row to row, bytes
    PIECE_COUNT = 12
    PATCHES = 13  # table of PATCH_COUNT: addresses of the words of the program that say how many rows
    PATCH_COUNT = 14
    ENDS = 15  # table of END_COUNT: address of the port's word in the context, address of the array, bytes of a row
    END_COUNT = 16
    KEPT = 17  # address: room for COUNT records, to put back if the call fails; 0: it cannot
    RECORD_BYTES = 18
    BROKEN = 19  # place of the handle that is at fault
    FORMS = (
        20  # address: three Forms: of handles, and of the rows of the one input and the one output; first sizes free
    )
    ROOM = 21  # handles that a call may have: records that KEPT has room for


POOL_WORDS: Final = 22
PIECE_WORDS: Final = 4
END_WORDS: Final = 3
SLOT_BITS: Final = 32

# Returned by the compiled entries beside 0 and fault codes:
NOT_FITTING: Final = -1  # the arrays need converting first
BUSY: Final = -2  # another caller is running on this context
RUNG: Final = -3  # done, and a helping thread would have been of use that sleeps
STALE: Final = -5  # a handle of no open slot
TWICE: Final = -6  # a slot twice in one call
ABSENT: Final = -4  # an instruction whose kernel this image does not have
UNDRAWN: Final = -5  # no token can be drawn from these scores
SAMPLER_BUSY: Final = -6  # another caller is drawing with this sampler


class Worker(IntEnum):
    """Words of a worker's block, each group in a cache line of its own: none waits for another's writers."""

    # what callers write when they come and go
    OWNER = 0  # address of the caller's context, 0: free; who turns it from 0 has the worker to itself
    LAST = 1  # when the last call ended
    BURST = 2  # when the calls began that followed one another without a pause
    ASKER = 3  # owner of the last job offered
    WITHDRAWN = 4  # number of the last job taken back
    REST = 5  # how long no job is offered after the last that came late; 0: the last came in time
    RESUME = 6  # when the next may be offered
    WORKED = 7  # time that jobs done for callers have taken, all told
    # the job: written by the owner, watched by the worker
    TICKET = 16  # number of the job offered last
    FUNCTION = 17  # address of a C function int64(int64)
    ARGUMENT = 18
    # which of owner and worker was first
    BEGUN = 32  # number of the last job that was begun, or taken back before it was
    # written by the worker, watched by the owner
    DONE = 48  # number of the last job the worker is through with: finished, or found withdrawn
    LASTED = 49  # how long that one took
    # seldom written
    AWAKE = 64  # 1 while the worker watches
    STOP = 65  # 1: it shall leave
    WANTED = 66  # 1: callers found it asleep and would use it; COMING: it is being woken
    BELL = 67  # address of a word that is set together with WANTED
    HOLD = 68  # nobody asks for it before this time
    SPIN = 69  # how long the worker watches without work before it sleeps
    RISE = 70  # how long a burst must last before it wakes the worker, and how long a claimed worker watches
    GRACE = 71  # how long an owner waits for a job that has not been begun


WORKER_WORDS: Final = 80
COMING: Final = 2


class Form(IntEnum):
    """Words that say which NumPy arrays a port takes as they are: type, dtype, flags, and two admissible shapes."""

    HEADER = 0  # bytes of a Python object's header; the fields of the array follow it
    TYPE = 1  # address of numpy.ndarray
    DTYPE = 2  # address of the dtype object
    FLAGS = 3  # flags that must be set
    AXES = 4  # of the full shape, whose sizes follow
    SIZES = 5
    LEAN_AXES = 13  # of the shape without its batch axis; -1: there is none
    LEAN_SIZES = 14


FORM_WORDS: Final = 24


def constant(address: int) -> int:
    """Operand for an address in the constants."""
    return address | CONSTANT


def port_word(port: int, word: Port) -> int:
    """Index of a port's word in the context."""
    return Context.PORTS + PORT_WORDS * port + word
