"""Enough of Gluon, in PyTorch and threads, to run generated kernels on a CPU.

What the real thing leaves to hardware is made hostile here, so that a mistake in a protocol shows:

- a copy overwrites its slot at once with NaN, and brings the data some time later;
- an asynchronous product reads its operands when it is issued and again when it is waited for, and
  must see the same both times: a slot filled too late, or handed back too early, fails;
- a store through the copy engine does likewise, and writes when it is waited for;
- rows that threads copy land when their group is waited for, no sooner;
- a wait that nobody ends fails after a few seconds;
- nobody comes to a named barrier twice in a turn, and none is left with some who came.

Layouts mean nothing here; the compiler checks them (tests/compile).
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from types import SimpleNamespace

import torch

SECONDS = 5.0  # until a wait counts as endless
NEVER = -(10**9)  # a whole number that nobody has written


class Int(int):
    """A constant of the kernel."""

    @property
    def value(self):
        return int(self)


class Float(float):
    """A constant of the kernel."""

    @property
    def value(self):
        return float(self)


def constexpr(x):
    match x:
        case float():
            return Float(x)
        case int():
            return Int(x)
    return x


class Pointer:
    """Elements of a tensor from its first one on."""

    def __init__(self, base, offset=0):
        self.base, self.offset = base, offset
        self.dtype = SimpleNamespace(element_ty=base.dtype)

    def __add__(self, offset):
        return Pointer(self.base, self.offset + offset)

    def __sub__(self, offset):
        return Pointer(self.base, self.offset - offset)

    def flat(self):
        size = 1 + sum(
            (n - 1) * s for n, s in zip(self.base.shape, self.base.stride(), strict=True)
        )
        return torch.as_strided(self.base, (size,), (1,))


def load(pointer, mask=None, other=None):
    place = torch.as_tensor(pointer.offset).long()
    inside = torch.as_tensor(True if mask is None else mask)
    place, inside = torch.broadcast_tensors(place, inside)
    flat = pointer.flat()
    found = flat[torch.where(inside, place, 0)]
    return found if mask is None else torch.where(inside, found, torch.tensor(other).to(flat.dtype))


def store(pointer, value, mask=None):
    flat = pointer.flat()
    place, value, inside = torch.broadcast_tensors(
        torch.as_tensor(pointer.offset).long(),
        torch.as_tensor(value).to(flat.dtype),
        torch.as_tensor(True if mask is None else mask),
    )
    flat[place[inside]] = value[inside]


def atomic_add(pointer, value, **_):  # programs run one after the other
    found = load(pointer).clone()
    store(pointer, found + value)
    return found


# -- barriers and copies --------------------------------------------------------------------------
class Barrier:
    """A barrier of phases: arrivals and bytes that are still missing."""

    def __init__(self):
        self.changed = threading.Condition()
        self.count = self.missing = self.bytes = self.phase = 0

    def init(self, count):
        self.count = self.missing = count

    def arrive(self, count=1, expected=0, copied=0):
        with self.changed:
            self.missing -= count
            self.bytes += expected - copied
            assert self.missing >= 0, "more arrivals than a phase has"
            if self.missing == 0 and self.bytes == 0:
                self.phase ^= 1
                self.missing = self.count
                self.changed.notify_all()

    def wait(self, parity):
        with self.changed:
            if not self.changed.wait_for(lambda: self.phase != int(parity), SECONDS):
                raise TimeoutError("a barrier waits forever")


class Named:
    """A barrier of the multiprocessor: counts threads, of which each comes once."""

    def __init__(self):
        self.changed = threading.Condition()
        self.here, self.turn = {}, 0

    def come(self, partition, threads, expected):
        """The turn that this arrival belongs to."""
        with self.changed:
            assert partition not in self.here, "more arrivals than a phase has: one came twice"
            self.here[partition] = threads
            turn, total = self.turn, sum(self.here.values())
            assert total <= expected, "more arrivals than a phase has"
            if total == expected:
                self.here, self.turn = {}, self.turn + 1
                self.changed.notify_all()
            return turn

    def meet(self, partition, threads, expected):
        turn = self.come(partition, threads, expected)
        with self.changed:
            if not self.changed.wait_for(lambda: self.turn != turn, SECONDS):
                raise TimeoutError("a barrier waits forever")


class Memory:
    """Shared memory, or barriers in it."""

    def __init__(self, data):
        self.data = data
        self.dtype = getattr(data, "dtype", None)

    def index(self, place):
        assert 0 <= int(place) < len(self.data)
        return Memory(self.data[int(place)])

    def reshape(self, shape):
        return Memory(self.data.view(*map(int, shape)))

    def permute(self, order):
        return Memory(self.data.permute(order))

    def slice(self, start, length, dim):
        return Memory(self.data.narrow(int(dim), int(start), int(length)))

    def load(self, _layout):
        missing = self.data.isnan() if self.data.is_floating_point() else self.data == NEVER
        assert not missing.any(), "values were read that were not there"
        return self.data.clone()

    def store(self, value):
        self.data.copy_(value)


def poisoned(shape, dtype):
    poison = float("nan") if dtype.is_floating_point else NEVER
    return torch.full([int(x) for x in shape], poison, dtype=dtype)


def allocate(dtype, shape, _layout):
    if dtype == torch.int64:
        return Memory([Barrier() for _ in range(int(shape[0]))])
    return Memory(poisoned(shape, dtype))


class TensorDescriptor:
    """A tensor that is copied by tiles; what lies outside reads as zero."""

    lock = threading.Lock()

    def __init__(self, base, shape, strides, block, layout):
        self.base = torch.as_strided(base, shape, strides)
        self.block, self.layout, self.dtype = block, layout, base.dtype
        size = base.element_size()
        self.block_type = SimpleNamespace(nbytes=int(torch.tensor(block).prod()) * size)

    def inside(self, coordinates):
        """What of a tile lies inside the tensor."""
        ends = [(int(c), int(c) + n) for c, n in zip(coordinates, self.block, strict=True)]
        assert all(first >= 0 for first, _ in ends)
        return self.base[tuple(slice(*x) for x in ends)]

    def tile(self, coordinates):
        found = torch.zeros(self.block, dtype=self.dtype)
        inside = self.inside(coordinates)
        found[tuple(slice(0, n) for n in inside.shape)] = inside
        return found

    def put(self, coordinates, data, *, adds=False):
        inside = self.inside(coordinates)
        given = data.reshape(self.block)[tuple(slice(0, n) for n in inside.shape)]
        assert not given.isnan().any() or not adds, "a sum was added that was not there"
        with self.lock:
            inside.copy_(inside + given if adds else given)


def tma_load(descriptor, coordinates, barrier, target):
    target.data.fill_(float("nan"))
    data = descriptor.tile(coordinates)

    def arrive():
        time.sleep(random.choice((0.0, 0.0, 0.0005, 0.002)))
        target.data.copy_(data)
        with contextlib.suppress(AssertionError):  # who waits for this barrier will say so
            barrier.data.arrive(0, copied=descriptor.block_type.nbytes)

    threading.Thread(target=arrive, daemon=True).start()


# -- products -------------------------------------------------------------------------------------
class Product:
    """A product that runs."""

    def __init__(self, a, b, acc):
        self.operands, self.acc = (a, b), acc
        self.early = self.now()

    def now(self):
        a, b = (x.data if isinstance(x, Memory) else x for x in self.operands)
        return a.float() @ b.float() + self.acc

    def finish(self):
        late = self.now()
        assert not late.isnan().any(), "a product read a tile that was not there"
        assert torch.equal(self.early, late), "an operand changed while a product ran"
        self.early = late


# -- the library ----------------------------------------------------------------------------------
def assembly(text, operands, dtype):
    """The few instructions that templates use, by name."""
    name = text.split()[0]
    if name.startswith("cvt.rn.") and name.endswith("x2.f32"):
        rounded = torch.bfloat16 if "bf16" in name else torch.float16
        return torch.stack(operands, -1).to(rounded).contiguous().view(dtype).squeeze(-1)
    if text.startswith("mov.b32 {"):
        halves = operands[0].contiguous().unsqueeze(-1).view(dtype[0])
        return halves[..., 0], halves[..., 1]
    if name == "brev.b64":
        return sum(((operands[0] >> i) & 1) << (63 - i) for i in range(64))
    assert text == "mov.b32 $0, $1;"
    return operands[0]


def pair(operation):
    return lambda a, b: operation(torch.as_tensor(a), torch.as_tensor(b))


def where(c, a, b):
    return torch.where(torch.as_tensor(c), torch.as_tensor(a), torch.as_tensor(b))


class SharedLayout:
    def __init__(self, **_):
        pass

    @staticmethod
    def get_default_for(*_):
        return SharedLayout()


LIBRARY = SimpleNamespace(
    **{name: getattr(torch, name) for name in ("int32", "int64", "float32", "bfloat16")},
    **{name: getattr(torch, name) for name in ("float16", "exp2", "exp", "log2", "log", "abs")},
    constexpr=constexpr,
    static_range=lambda n: range(int(n)),
    NVMMASharedLayout=SharedLayout,
    NVMMADistributedLayout=lambda *_: None,
    SliceLayout=lambda *_: None,
    BlockedLayout=lambda *_: None,
    SwizzledSharedLayout=lambda *_: None,
    DotOperandLayout=lambda *_: None,
    convert_layout=lambda x, _: x,
    arange=lambda first, end, _layout=None: torch.arange(first, end, dtype=torch.int32),
    full=lambda shape, x, dtype, _: torch.full([int(n) for n in shape], x, dtype=dtype),
    zeros=lambda shape, dtype, _=None: torch.zeros([int(n) for n in shape], dtype=dtype),
    reshape=lambda x, shape: x.reshape([int(n) for n in shape]),
    max=lambda x, axis: torch.amax(x, axis),
    min=lambda x, axis: torch.amin(x, axis),
    sum=lambda x, axis: x.sum(axis),
    maximum=pair(torch.maximum),
    minimum=pair(torch.minimum),
    where=where,
    load=load,
    store=store,
    atomic_add=atomic_add,
    split=lambda x: (x[..., 0], x[..., 1]),
    join=lambda low, high: torch.stack((low, high), -1),
    allocate_shared_memory=allocate,
    barrier=lambda: None,
)


class Kernel:
    """A function of a generated module; with a grid, one program after the other."""

    def __init__(self, machine, function):
        self.machine, self.function = machine, function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            given = [Pointer(x) if isinstance(x, torch.Tensor) else x for x in arguments]
            options = {x: y for x, y in options.items() if x not in ("num_warps", "maxnreg")}
            self.machine.grid = grid
            for ids in itertools.product(*(range(n) for n in reversed(grid))):
                self.machine.ids = ids[::-1]
                self.function(*given, **options)

        return launch


class Torch:
    """PyTorch beside a GPU of three multiprocessors."""

    cuda = SimpleNamespace(
        current_device=lambda: 0,
        get_device_properties=lambda _: SimpleNamespace(multi_processor_count=3),
    )

    @staticmethod
    def empty(shape, *, dtype, **_):
        return poisoned([shape] if isinstance(shape, int) else shape, dtype)

    def __getattr__(self, name):
        return getattr(torch, name)


class Machine:
    """A program that runs, and the products and stores that each of its partitions waits for."""

    def __init__(self):
        self.state = threading.local()
        self.ids = self.grid = (0, 0, 0)
        self.named = []

    def jit(self, function=None, **_):
        return self.jit if function is None else Kernel(self, function)

    def program_id(self, axis):
        return torch.tensor(self.ids[axis], dtype=torch.int32)

    def num_programs(self, axis):
        return torch.tensor(self.grid[axis], dtype=torch.int32)

    def warpgroup_mma(self, a, b, acc, use_acc=True, is_async=False):
        assert is_async
        acc = acc.early if isinstance(acc, Product) else acc  # products run in their order
        made = Product(a, b, acc if use_acc else acc * 0.0)
        self.state.products.append(made)
        return made

    def warpgroup_mma_wait(self, outstanding, deps):
        products = self.state.products
        while len(products) > outstanding:
            products.pop(0).finish()
        for x in deps:
            assert not (isinstance(x, Product) and x in products), "a product still runs"
        found = tuple(x.early if isinstance(x, Product) else x for x in deps)
        return found[0] if len(found) == 1 else found

    def tma_store(self, descriptor, coordinates, source):
        self.state.stores.append((descriptor, coordinates, source, source.data.clone(), False))

    def tma_add(self, descriptor, coordinates, source):
        self.state.stores.append((descriptor, coordinates, source, source.data.clone(), True))

    def store_wait(self, outstanding):
        while len(self.state.stores) > outstanding:
            descriptor, coordinates, source, early, adds = self.state.stores.pop(0)
            same = torch.equal(early.nan_to_num(), source.data.nan_to_num())
            assert same, "memory changed while a store read it"
            descriptor.put(coordinates, source.data, adds=adds)

    def copy_rows(self, target, pointer, mask):
        target.data.fill_(float("nan"))
        self.state.copies[-1].append((target, pointer, mask))

    def commit_group(self):
        self.state.copies.append([])

    def wait_group(self, running):
        groups = self.state.copies
        while len(groups) > running + 1:
            for target, pointer, mask in groups.pop(0):
                target.data.copy_(load(pointer, mask, 0.0))

    def assembly(self, text, _constraints, operands, dtype, **_):
        if not text.startswith("bar."):
            return assembly(text, operands, dtype)
        name, expected = map(int, operands)
        assert 0 < name < 16, "no such named barrier"
        found = self.named[name]
        arrive = found.meet if text.startswith("bar.sync") else found.come
        return arrive(self.state.place, self.state.threads, expected)

    def partition(self, place, function, arguments, warps, errors):
        self.state.products, self.state.stores, self.state.copies = [], [], [[]]
        self.state.place, self.state.threads = place, 32 * warps
        try:
            function(*arguments)
            assert not self.state.products, "a product was not waited for"
            assert not self.state.stores, "a store was not waited for"
            assert self.state.copies == [[]], "a copy was not waited for"
        except Exception as error:  # shown by the parent
            errors.append(error)

    def warp_specialize(self, functions, worker_warps, worker_registers):
        assert len(worker_warps) == len(worker_registers) == len(functions) - 1
        errors = []
        self.named = [Named() for _ in range(16)]
        threads = [
            threading.Thread(target=self.partition, args=(i, *x, warps, errors), daemon=True)
            for i, (x, warps) in enumerate(zip(functions, [4, *worker_warps], strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * SECONDS)
        if errors:
            raise errors[0]
        assert not any(x.here for x in self.named), "a named barrier was left: nobody waited"


MBARRIER = SimpleNamespace(
    MBarrierLayout=lambda: None,
    init=lambda x, count: x.data.init(int(count)),
    expect=lambda x, size: x.data.arrive(1, expected=size),
    arrive=lambda x, count: x.data.arrive(count),
    wait=lambda x, parity: x.data.wait(parity),
)


def simulated(source):
    """Names of a generated module, run by the simulator."""
    machine = Machine()
    library = SimpleNamespace(
        **vars(LIBRARY),
        program_id=machine.program_id,
        num_programs=machine.num_programs,
        warp_specialize=machine.warp_specialize,
        inline_asm_elementwise=machine.assembly,
    )
    names = {
        "torch": Torch(),
        "triton": SimpleNamespace(jit=machine.jit, cdiv=lambda a, b: -(-a // b)),
        "tl": library,
        "gl": library,
        "gluon": SimpleNamespace(jit=machine.jit),
        "tma": SimpleNamespace(
            async_load=tma_load,
            async_store=machine.tma_store,
            async_atomic_add=machine.tma_add,
            store_wait=machine.store_wait,
        ),
        "async_copy": SimpleNamespace(
            async_load=machine.copy_rows,
            commit_group=machine.commit_group,
            wait_group=machine.wait_group,
        ),
        "TensorDescriptor": TensorDescriptor,
        "fence_async_shared": lambda: None,
        "warpgroup_mma": machine.warpgroup_mma,
        "warpgroup_mma_wait": machine.warpgroup_mma_wait,
        "mbarrier": MBARRIER,
    }
    body = [x for x in source.splitlines() if not x.startswith(("import ", "from "))]
    exec("\n".join(body), names)  # noqa: S102
    return names
