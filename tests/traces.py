"""Hand-built traces for the tests of passes and views: small enough to check by eye, or big on
purpose.

`mlp_step()` is a training step of a two-layer perceptron as tinygrad would cut it: forward,
backward, optimizer, with code, loop nests, a rewrite pass, times and memory. `hostile()` has markup
in every name. `big(n)` has n kernels in the shape of a deep residual network.
"""

from __future__ import annotations

from dataclasses import replace

from tgx.model import (
    Boundary,
    Buffer,
    Cache,
    Check,
    Code,
    Contribution,
    Counts,
    Environment,
    Event,
    File,
    Flow,
    Frame,
    GradientStep,
    Graph,
    Kernel,
    Loop,
    MemoryEvent,
    Node,
    Opt,
    Origin,
    Pass,
    Program,
    Realize,
    Rule,
    Run,
    Schedule,
    Target,
    Timing,
    Trace,
    Traffic,
    Value,
    Walk,
    WalkKernel,
    WalkOperation,
)

MLP_SOURCE = """\
from tinygrad import Tensor, nn

class MLP:
    def __init__(self):
        self.w1, self.b1 = Tensor.normal(784, 128), Tensor.zeros(128)
        self.w2, self.b2 = Tensor.normal(128, 10), Tensor.zeros(10)

    def __call__(self, x):
        h = x @ self.w1 + self.b1
        h = h.relu()
        return h @ self.w2 + self.b2

model, opt = MLP(), nn.optim.SGD(...)
loss = model(x).sparse_categorical_crossentropy(y)
loss.backward()
opt.step()"""

C_SOURCE = """\
void r_64_128_784(float* restrict data0, float* restrict data1, float* restrict data2) {
  for (int i = 0; i < 64; i++) {
    float acc = 0.0f;
    for (int r = 0; r < 784; r++) {
      acc = acc + data1[i*784+r] * data2[r];
    }
    data0[i] = acc > 0.0f ? acc : 0.0f;
  }
}"""

IR_SOURCE = """\
define void @r_64_128_784(ptr %args, i64 %chunk) {
entry:
  %acc = fadd float %a, %b
  store float %acc, ptr %out
  ret void
}"""


def mlp_step() -> Trace:
    """One training step of an MLP: ten kernels, two equal ones sharing a program."""
    rows = tuple(enumerate(MLP_SOURCE.split("\n"), 1))
    files = (
        File(0, "mlp.py", lines=rows),
        File(1, "tinygrad/schedule/indexing.py", user=False,
             lines=((267, "if not all_all_same: ctx.realize_map[x] = None"),)),
        File(2, "tinygrad/uop/symbolic.py", user=False,
             lines=((31, '(UPat.var("x") + 0, lambda x: x),'),)),
    )
    frames = (
        Frame(0, 0, 9, "__call__"), Frame(1, 0, 10, "__call__"), Frame(2, 0, 11, "__call__"),
        Frame(3, 0, 14, "<module>"), Frame(4, 0, 15, "<module>"), Frame(5, 0, 16, "<module>"),
        Frame(6, 0, 5, "__init__"),
    )
    origins = (
        Origin(0, "matmul", 0, stack=(3, 0), via=("matmul", "dot")),
        Origin(1, "add", 0, stack=(3, 0)),
        Origin(2, "relu", 1, stack=(3, 1), names=("h",)),
        Origin(3, "matmul", 2, stack=(3, 2)),
        Origin(4, "add", 2, stack=(3, 2)),
        Origin(5, "sparse_categorical_crossentropy", 3, stack=(3,), names=("loss",)),
        Origin(6, "sparse_categorical_crossentropy", 4, "backward", 5, stack=(4,)),
        Origin(7, "matmul", 4, "backward", 3, stack=(4,)),
        Origin(8, "relu", 4, "backward", 2, stack=(4,)),
        Origin(9, "matmul", 4, "backward", 0, stack=(4,)),
        Origin(10, "step", 5, "optimizer", stack=(5,)),
        Origin(11, "to", 3, "data", stack=(3,)),
    )
    lazy = Graph.of(0, "lazy", (
        Node(0, "PARAM", "float", "64×784", "x", phase="forward"),
        Node(1, "PARAM", "float", "784×128", "w1", phase="forward"),
        Node(2, "MUL", "float", "64×784×128", src=(0, 1), origins=(0,), phase="forward",
             tensor_op="matmul"),
        Node(3, "REDUCE", "float", "64×128", "ADD", (2,), (0,), phase="forward",
             tensor_op="matmul"),
        Node(4, "PARAM", "float", "128", "b1", phase="forward"),
        Node(5, "ADD", "float", "64×128", src=(3, 4), origins=(1,), phase="forward",
             tensor_op="add"),
        Node(6, "CONST", "float", "", "0.0"),
        Node(7, "MAX", "float", "64×128", src=(5, 6), origins=(2,), phase="forward",
             tensor_op="relu"),
        Node(8, "PARAM", "float", "128×10", "w2", phase="forward"),
        Node(9, "MUL", "float", "64×128×10", src=(7, 8), origins=(3,), phase="forward",
             tensor_op="matmul"),
        Node(10, "REDUCE", "float", "64×10", "ADD", (9,), (3,), phase="forward",
             tensor_op="matmul"),
        Node(11, "MUL", "float", "128×10", src=(7, 10), origins=(7,), phase="backward",
             tensor_op="matmul"),
    ), roots=(10, 11))
    uops = Graph.of(1, "uops", (
        Node(0, "PARAM", "ptr float", arg="data0"),
        Node(1, "PARAM", "ptr float", arg="data1"),
        Node(2, "PARAM", "ptr float", arg="data2"),
        Node(3, "CONST", "int", arg="64"),
        Node(4, "RANGE", "int", arg="0", src=(3,)),
        Node(5, "CONST", "int", arg="784"),
        Node(6, "RANGE", "int", arg="1 reduce", src=(5, 4)),
        Node(7, "INDEX", "ptr float", src=(1, 4, 6)),
        Node(8, "LOAD", "float", src=(7,), origins=(0,), tensor_op="matmul"),
        Node(9, "INDEX", "ptr float", src=(2, 6)),
        Node(10, "LOAD", "float", src=(9,), origins=(0,), tensor_op="matmul"),
        Node(11, "MUL", "float", src=(8, 10), origins=(0,), tensor_op="matmul"),
        Node(12, "REDUCE", "float", arg="ADD", src=(11, 6), origins=(0,), tensor_op="matmul"),
        Node(13, "CONST", "float", arg="0.0"),
        Node(14, "MAX", "float", src=(12, 13), origins=(2,), tensor_op="relu"),
        Node(15, "INDEX", "ptr float", src=(0, 4)),
        Node(16, "STORE", src=(15, 14), origins=(2,), tensor_op="relu"),
        Node(17, "SINK", src=(16,)),
    ), roots=(17,))
    table = Graph.of(2, "table", (
        Node(0, "PARAM", "float", arg="data1"),
        Node(1, "CONST", "float", arg="0"),
        Node(2, "ADD", "float", src=(0, 1)),
        Node(3, "CONST", "float", arg="2.0"),
        Node(4, "MUL", "float", src=(2, 3)),
        Node(5, "MUL", "float", src=(0, 3)),
        Node(6, "SINK", src=(4,)),
        Node(7, "SINK", src=(5,)),
    ))
    before = (Loop("m", "64", "loop"), Loop("n", "128", "loop"), Loop("k", "784", "reduce"))
    middle = (Loop("m", "64", "thread"), Loop("n", "128", "loop"), Loop("k", "784", "reduce"))
    after = (Loop("m", "64", "thread"), Loop("n", "8", "loop"), Loop("k", "784", "reduce"),
             Loop("n1", "16", "upcast"))
    linear = Program(
        0, "r_64_128_784", "TGX", "aa11", uops=1, loops=after,
        opts=(Opt("THREAD", 0, 64, "run the rows on threads", before, middle),
              Opt("UPCAST", 1, 16, "compute 16 columns at once", middle, after)),
        code=(Code("source", C_SOURCE, "c", (17, 4, 12, 6, 11, -1, 16, -1, -1)),
              Code("ir", IR_SOURCE, "llvm", (-1, -1, 12, 16, -1, -1)),
              Code("asm", "vaddps ymm0, ymm1, ymm2\nvmovaps [rdi], ymm0\nret", "asm",
                   (12, 16, -1), (("bytes of code", "412"), ("spills", "0")))),
        path="matmul", flops=12_845_056, bytes=634_880, lds_bytes=51_380_224, compile_us=4200.0)
    others = tuple(
        Program(i, name, "TGX", f"bb{i:02}", path="general", path_reason=why, flops=flops,
                bytes=nbytes)
        for i, name, why, flops, nbytes in (
            (1, "r_64_10_128", "only 10 columns", 163_840, 40_448),
            (2, "r_64_10", "not a matmul", 6_400, 2_820),
            (3, "E_64_10", "not a matmul", 3_200, 5_376),
            (4, "r_128_10_64", "only 10 columns", 163_840, 40_448),
            (5, "r_64_128_10", "short reduction", 172_032, 73_728),
            (6, "r_784_128_64", "", 12_845_056, 634_880),
            (7, "E_sgd", "not a matmul", 200_704, 1_204_224)))
    k = {"device": "TGX", "schedule": 0}
    kernels = (
        Kernel(9, "copy y", "copy", "TGX", "data", "copy", 0, ops=("to",), lines=((0, 14),),
               origins=(11,), reads=(14,), writes=(3,), bytes=256),
        Kernel(0, "linear + bias + relu", "r_64_128_784", phase="forward", program=0,
               ops=("matmul", "add", "relu"), lines=((0, 9), (0, 10)), origins=(0, 1, 2),
               reads=(0, 1, 2), writes=(4,), **k),
        Kernel(1, "linear + bias", "r_64_10_128", phase="forward", program=1,
               ops=("matmul", "add"), lines=((0, 11),), origins=(3, 4), reads=(4, 5, 6),
               writes=(7,), **k),
        Kernel(2, "cross entropy", "r_64_10", phase="forward", program=2,
               ops=("sparse_categorical_crossentropy",), lines=((0, 14),), origins=(5,),
               reads=(7, 3), writes=(8,), **k),
        Kernel(3, "∂z = softmax - y", "E_64_10", phase="backward", program=3,
               ops=("sparse_categorical_crossentropy",), lines=((0, 14),),
               forward=("sparse_categorical_crossentropy",), origins=(6,), reads=(7, 3),
               writes=(9,), **k),
        Kernel(4, "∂w2 = hᵀ·∂z", "r_128_10_64", phase="backward", program=4, ops=("matmul",),
               lines=((0, 11),), forward=("matmul",), origins=(7,), reads=(4, 9), writes=(10,),
               **k),
        Kernel(5, "∂h = ∂z·w2ᵀ, relu", "r_64_128_10", phase="backward", program=5,
               ops=("matmul", "relu"), lines=((0, 10), (0, 11)), forward=("matmul", "relu"),
               origins=(7, 8), reads=(9, 5, 4), writes=(11,), **k),
        Kernel(6, "∂w1 = xᵀ·∂h", "r_784_128_64", phase="backward", program=6, ops=("matmul",),
               lines=((0, 9),), forward=("matmul",), origins=(9,), reads=(0, 11), writes=(12,),
               **k),
        Kernel(7, "sgd: w1", "E_sgd", phase="optimizer", program=7, ops=("step",),
               lines=((0, 16),), origins=(10,), reads=(1, 12), writes=(1,), **k),
        Kernel(8, "sgd: w2", "E_sgd", phase="optimizer", program=7, ops=("step",),
               lines=((0, 16),), origins=(10,), reads=(5, 10), writes=(5,), **k),
    )
    order = tuple(kernel.id for kernel in kernels)
    b = {"device": "TGX", "dtype": "float", "schedule": 0}
    buffers = (
        Buffer(0, "x", "input", shape="64×784", nbytes=200_704, **b),
        Buffer(1, "w1", "input", shape="784×128", nbytes=401_408, **b),
        Buffer(2, "b1", "input", shape="128", nbytes=512, **b),
        Buffer(3, "y", shape="64", nbytes=256, first=0, last=4, **b),
        Buffer(4, "h", shape="64×128", nbytes=32_768, first=1, last=6, **b),
        Buffer(5, "w2", "input", shape="128×10", nbytes=5_120, **b),
        Buffer(6, "b2", "input", shape="10", nbytes=40, **b),
        Buffer(7, "z", shape="64×10", nbytes=2_560, first=2, last=4, **b),
        Buffer(8, "loss", "output", nbytes=4, first=3, **b),
        Buffer(9, "∂z", shape="64×10", nbytes=2_560, first=4, last=6, **b),
        Buffer(10, "∂w2", shape="128×10", nbytes=5_120, first=5, last=9, **b),
        Buffer(11, "∂h", shape="64×128", nbytes=32_768, first=6, last=7, **b),
        Buffer(12, "∂w1", shape="784×128", nbytes=401_408, first=7, last=8, **b),
        Buffer(14, "y on CPU", "input", "CPU", "int", "64", 256, 0),
    )
    because = {
        "matmul": ("a reduce's result is read by another reduce, which would repeat it",
                   "reduce feeds reduce"),
        "two": ("relu's output is read by the second matmul (line 11) and by two gradients, which "
                "walk it in different orders; so it is stored once",
                "readers walk it differently"),
        "realize": ("opt.step() asked for this result", "asked for"),
    }

    def boundary(i: int, reason: str, kind: str, source: int, readers: tuple[int, ...],
                 buffer: int, **more: object) -> Boundary:
        sentence, brief = because[kind]
        return Boundary(i, reason, sentence, source, readers, buffer, 0, brief=brief,
                        **more)  # type: ignore[arg-type]

    rule = "schedule/indexing.py:267 run_rangeify"
    boundaries = (
        boundary(0, "two-consumers", "two", 0, (1, 4, 5), 4, rule=rule, graph=0, nodes=(7,),
                 kernels_without=9, fuse_by="compute relu again in each reader"),
        boundary(1, "reduce-reduce", "matmul", 1, (2, 3), 7, rule=rule),
        boundary(2, "two-consumers", "two", 3, (4, 5), 9, rule=rule),
        boundary(3, "reduce-reduce", "matmul", 5, (6,), 11, rule=rule),
        boundary(4, "realize", "realize", 2, (), 8, rule="tensor.py:28 realize"),
        boundary(5, "realize", "realize", 4, (8,), 10, rule="tensor.py:28 realize"),
        boundary(6, "realize", "realize", 6, (7,), 12, rule="tensor.py:28 realize"),
    )
    times = {9: 1.5, 0: 420.0, 1: 12.0, 2: 6.0, 3: 4.0, 4: 14.0, 5: 31.0, 6: 388.0, 7: 95.0, 8: 3.0}
    runs, at = [], 100.0
    for realize in range(2):
        for i in order:
            runs.append(Run(i, at, times[i], realize))
            at += times[i] + 2.0
        at += 400.0
    memory, used = [], 0
    for name, nbytes in (("x", 200_704), ("w1", 401_408), ("h", 32_768), ("∂h", 32_768),
                         ("∂w1", 401_408), ("∂h", -32_768), ("∂w1", -401_408)):
        used += nbytes
        memory.append(MemoryEvent(50.0 + 10 * len(memory), "TGX", nbytes, used, name))
    return Trace(
        environment=Environment(
            "mlp.py", ("--steps", "2"), "0.1.0", "0.14.0", "3.11", "x86_64, 2 cores", "TGX",
            "full"),
        files=files, frames=frames, origins=origins, graphs=(lazy, uops, table),
        programs=(linear, *others),
        schedules=(Schedule(0, order, 5, 0, name="training step", phase="backward",
                            planned_bytes=482_000, unplanned_bytes=510_000),),
        kernels=kernels, buffers=buffers, boundaries=boundaries,
        rules=(Rule(0, 2, 31, '(UPat.var("x") + 0, lambda x: x),', "lambda"),),
        passes=(
            Pass(0, "earliest rewrites", program=0, table=2, before=6, after=6),
            Pass(1, "symbolic", program=0, table=2, before=6, after=7, matches=1,
                 steps=(0, 2, 0, 0, 1, 4, 5, -1, 1, 6, 7, -1)),
        ),
        realizes=(Realize(0, 0, 90.0, 1090.0, 0), Realize(1, 0, 1500.0, 2500.0, 1)),
        runs=tuple(runs),
        timings=tuple(Timing(i, 2, 2 * t, t, t) for i, t in times.items()),
        memory=tuple(memory),
        events=(Event("schedule", "schedule training step", 80.0, 10.0, 5),
                Event("compile", "r_64_128_784", 20.0, 42.0)),
    )


EVIL = '</script><script>alert(1)</script><img src=x onerror=alert(2)>"\'&\\N{];-->\x00\x1b[31m'


def counted_step() -> Trace:
    """The same step, two of its kernels counted: in three launches, and in one."""
    trace = mlp_step()
    caches = (Cache("L1", 32_768, 8), Cache("L2", 1_048_576, 8))
    return replace(
        trace,
        environment=replace(trace.environment, caches=caches),
        counts=(
            Counts(0, 3, 38_535_168, 1_990_944, 38_535_168, 154_140_672, 1_904_640),
            Counts(3, 1, 13_696, 4_480, 3_200),
        ),
        traffic=(
            Traffic(0, 4, "", 0, 24_576, 0, 98_304, 1_614, 1_536),
            Traffic(0, 0, "", 4_816_896, 0, 19_267_584, 0, 10_209, 9_408),
            Traffic(0, 1, "", 4_816_896, 0, 19_267_584, 0, 301_056, 18_816),
            Traffic(0, -1, "packed copies", 1_204_224, 301_056, 4_816_896, 1_204_224, 56_448, 0,
                    "copies"),
            Traffic(3, 7, "", 640, 0, 2_560, 0, 40, 40),
        ),
    )


def number(value: float) -> Value:
    """A scalar's Value."""
    return Value("scalar", 1, (value,), value, abs(value), value, value, zeros=int(value == 0))


def backward_walk(name: str = "x") -> Trace:
    """The backward of ``x*x + x`` at 2: two steps, with a running total, in one kernel."""
    text = f"{name}*{name} + {name}"
    files = (
        File(0, "expression", lines=((1, text),)),
        File(1, "tinygrad/mixin/gradient.py", user=False),
        File(2, "tinygrad/tensor.py", user=False),
    )
    n = len(name.encode())
    frames = (
        Frame(0, 0, 1, column=0, end_column=2 * n + 1),
        Frame(1, 0, 1, column=0, end_column=len(text.encode())),
    )
    origins = (Origin(0, "mul", 0), Origin(1, "add", 1))
    rules = (
        Rule(0, 1, 60, "(UPat(Ops.ADD), lambda ctx: (ctx, ctx))", "pm_gradient"),
        Rule(1, 1, 65, "(UPat(Ops.MUL, name=\"ret\"), lambda ctx, ret: (ret.src[1]*ctx, "
             "ret.src[0]*ctx))", "pm_gradient"),
        Rule(2, 2, 657, "def backward(self, gradient:Tensor|None=None) -> Tensor:", "backward"),
        Rule(3, 1, 128, "else: grads[k] = grads[k] + v", "compute_gradient"),
    )
    graph = Graph.of(0, "lazy", (
        Node(0, "BUFFER", "float32", "1"),
        Node(1, "RESHAPE", "float32", "scalar", src=(0,), label=name),
        Node(2, "MUL", "float32", "scalar", src=(1, 1), origins=(0,), tensor_op="mul",
             label=f"{name}*{name}"),
        Node(3, "ADD", "float32", "scalar", src=(2, 1), origins=(1,), tensor_op="add", label=text),
        Node(4, "CONST", "float32", "scalar", "1.0"),
        Node(5, "MUL", "float32", "scalar", src=(1, 4)),
        Node(6, "ADD", "float32", "scalar", src=(4, 5)),
        Node(7, "ADD", "float32", "scalar", src=(6, 5)),
    ), "walk 0", (3,))
    kernel = Kernel(0, f"∂{name}", "E", "TGX", "backward", program=-1)

    def check(gradient: float) -> Check:
        return Check((0,), (gradient,), (gradient,), 2e-12)

    steps = (
        GradientStep(0, 0, 3, "ADD", "add", 1, 0, "ADD", "a + b", 4, (
            Contribution(2, 0, 4, 4, "∂(a+b)/∂a = 1", "1", check=check(1.0)),
            Contribution(1, 1, 4, 4, "∂(a+b)/∂b = 1", "1", check=check(1.0)),
        ), group=0),
        GradientStep(1, 0, 2, "MUL", "mul", 0, 1, "MUL", "a · b", 4, (
            Contribution(1, 0, 5, 6, "∂(a·b)/∂a = b", "2", check=check(2.0)),
            Contribution(1, 1, 5, 7, "∂(a·b)/∂b = a", "2", check=check(2.0)),
        ), (5, 6, 7), (0,), 1),
    )
    operations = (
        WalkOperation(0, 0, "add", "add", 1, (0,), 3, 4, (
            Flow(2, number(1.0), "A", "dA = dZ", 0.0), Flow(1, number(1.0), "B", "dB = dZ", 0.0))),
        WalkOperation(1, 0, "mul", "mul", 0, (1,), 2, 4, (
            Flow(1, number(4.0), "X", "dX = 2·X⊙dZ", 0.0),)),
    )
    walk = Walk(
        0, 0, 3, 4, text, values=tuple(map(number, (2.0, 2.0, 4.0, 6.0, 1.0, 2.0, 3.0, 5.0))),
        targets=(Target(1, name, 7, True, check=check(5.0)),),
        kernels=(WalkKernel(0, (5, 6, 7)),), route=(2, 3),
    )
    return Trace(
        Environment(text, (f"{name}=2.0",), "0.1.0", "0.14.0", "3.11.7", "x86_64", "TGX"),
        files, frames, origins, (graph,), rules=rules, kernels=(kernel,), walks=(walk,),
        gradients=steps, operations=operations,
    )


def hostile() -> Trace:
    """The same step with markup, quotes, control characters and a bidi mark in every name."""
    trace = counted_step()
    evil = EVIL + "\u202e"
    return replace(
        trace,
        environment=replace(trace.environment, program=evil, error=evil, missing=(evil,),
                            caches=tuple(replace(c, name=evil)
                                         for c in trace.environment.caches)),
        traffic=tuple(replace(t, name=evil) for t in trace.traffic),
        files=tuple(replace(f, path=f.path + evil,
                            lines=tuple((n, text + evil) for n, text in f.lines))
                    for f in trace.files),
        frames=tuple(replace(f, function=evil) for f in trace.frames),
        origins=tuple(replace(o, op=o.op + evil, names=(evil,)) for o in trace.origins),
        graphs=tuple(replace(g, name=evil, args=tuple(a + evil for a in g.args),
                             tensor_ops=tuple(t + evil for t in g.tensor_ops),
                             shapes=tuple(s + evil for s in g.shapes)) for g in trace.graphs),
        programs=tuple(replace(p, name=p.name + evil, path=evil, path_reason=evil,
                               code=tuple(replace(c, text=c.text + evil, facts=((evil, evil),))
                                          for c in p.code),
                               opts=tuple(replace(o, text=evil) for o in p.opts))
                       for p in trace.programs),
        schedules=tuple(replace(s, name=evil, jit=evil) for s in trace.schedules),
        kernels=tuple(replace(k, name=k.name + evil, tinygrad_name=evil, device=evil,
                              ops=(evil,), forward=(evil,)) for k in trace.kernels),
        buffers=tuple(replace(b, name=b.name + evil, shape=evil, dtype=evil)
                      for b in trace.buffers),
        boundaries=tuple(replace(b, because=evil, brief=evil, rule=evil, fuse_by=evil, reason=evil)
                         for b in trace.boundaries),
        rules=tuple(replace(r, text=evil, function=evil) for r in trace.rules),
        passes=tuple(replace(p, name=p.name + evil) for p in trace.passes),
        memory=tuple(replace(m, name=evil, device=evil) for m in trace.memory),
        events=tuple(replace(e, name=evil, text=evil) for e in trace.events),
    )


def big(n: int = 3000, nodes: int = 400, steps: int = 200) -> Trace:
    """A residual network's training step of n kernels: blocks called in a loop, so many kernels
    share a line. The first program has `nodes` UOps and a pass of `steps` steps."""
    source = [
        "def block(x, w):", "    y = conv(x, w[0])", "    y = norm(y, w[1]).relu()",
        "    y = conv(y, w[2])", "    return (x + y).relu()", "for w in blocks: x = block(x, w)",
        "loss = x.mean()", "loss.backward()", "opt.step()",
    ]
    frames = tuple(Frame(i, 0, i + 1, "block" if i < 5 else "<module>") for i in range(9))
    work = (("conv", 1), ("norm", 2), ("relu", 2), ("conv", 3), ("add", 4), ("relu", 4))
    forward = tuple(Origin(i, op, line, stack=(5, line)) for i, (op, line) in enumerate(work))
    backward = tuple(Origin(6 + i, op, 7, "backward", i, stack=(7,))
                     for i, (op, _) in enumerate(work))
    step = Origin(12, "step", 8, "optimizer", stack=(8,))
    third = n // 3
    kernels, buffers, boundaries, timings = [], [], [], []
    for i in range(n):
        phase = ("forward", "backward", "optimizer")[min(i // third, 2)]
        which = i % 6 if phase == "forward" else 5 - i % 6
        origin = {"forward": which, "backward": 6 + which, "optimizer": 12}[phase]
        reads = tuple({j for j in (i - 1, i - 6) if j >= 0 and phase != "optimizer"})
        if phase == "backward":
            reads = (*reads, 2 * third - 1 - i if 2 * third - 1 - i >= 0 else 0)
        elif phase == "optimizer":
            reads = (min(i - third, n - 1),)
        name = {"forward": "{}", "backward": "∂{}", "optimizer": "sgd: w{}"}[phase].format(
            i if phase == "optimizer" else work[which][0])
        line = 9 if phase == "optimizer" else work[which][1] + 1
        kernels.append(Kernel(i, name, f"r_{i % 97}_{which}", "TGX", phase, "kernel", 0, i % 97,
                              (work[which][0],), ((0, line),), (), (origin,), reads, (i,)))
        buffers.append(Buffer(i, f"t{i}", nbytes=4096 * (1 + i % 64), schedule=0, device="TGX",
                              dtype="float", shape="64×16", first=i, last=min(i + 7, n - 1)))
        boundaries.append(Boundary(i, "two-consumers", "read in two different orders", i,
                                   tuple(j for j in (i + 1,) if j < n), i, 0, brief="two readers",
                                   rule="schedule/indexing.py:267 run_rangeify"))
        timings.append(Timing(i, 3, 3.0 * (10 + i % 50), 9.0 + i % 50, 10.0 + i % 50))
    table = Graph.of(0, "table", (
        Node(i, ("ADD", "MUL", "LOAD", "INDEX", "CONST")[i % 5] if i else "PARAM", "float",
             arg=str(i), src=tuple(j for j in (i - 1, i - 7) if j >= 0))
        for i in range(nodes)))
    flat = tuple(x for i in range(steps) for x in (i % 2, i % (nodes - 1), i % (nodes - 1) + 1,
                                                   0 if i % 2 == 0 else -1))
    return Trace(
        environment=Environment("resnet.py", device="TGX", level="full"),
        files=(File(0, "resnet.py", lines=tuple(enumerate(source, 1))),
               File(1, "tinygrad/uop/symbolic.py", user=False, lines=((31, "x + 0 -> x"),))),
        frames=frames, origins=(*forward, *backward, step),
        graphs=(table, replace(table, id=1, kind="uops"), replace(table, id=2, kind="lazy")),
        programs=tuple(Program(i, f"r_{i}", "TGX", f"{i:04x}", uops=1 if i == 0 else -1,
                               flops=1000 * i, bytes=4096,
                               code=(Code("source", f"void r_{i}() {{}}", "c"),))
                       for i in range(97)),
        schedules=(Schedule(0, tuple(range(n)), 8, 2, name="training step", phase="backward"),),
        kernels=tuple(kernels), buffers=tuple(buffers), boundaries=tuple(boundaries),
        rules=(Rule(0, 1, 31, "x + 0 -> x", "lambda"),),
        passes=(Pass(0, "symbolic", program=0, table=0, before=nodes - 1, after=nodes - 1,
                     matches=steps // 2, steps=flat),),
        realizes=(Realize(0, 0, 0.0, 1e6), Realize(1, 0, 1e6, 2e6, 1)),
        timings=tuple(timings),
    )
