"""Speed, as ratios of two ways in one process: seconds differ between machines, ratios less.

A benchmark is a function that returns rows; ``@benchmark`` puts it on the list. Every ratio takes
the median of interleaved runs, so that a busy moment hits both sides alike.
"""

from __future__ import annotations

import os
import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from book import BUILD
from book.ledger import save, table

REPEATS = 5


@dataclass
class Row:
    """One measured comparison: seconds of the reference over seconds of what the book uses.

    ``at_least`` is the ratio that the book promises, where it promises one. A row without a
    reference reports seconds alone.
    """

    what: str
    seconds: float
    reference: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times faster than the reference."""
        return None if self.reference is None else self.reference / self.seconds

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.at_least is None or self.ratio >= self.at_least


BENCHMARKS: dict[str, Callable[[], list[Row]]] = {}


def benchmark(name: str):
    """Put a function that returns rows on the list."""

    def add(function: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
        if name in BENCHMARKS:
            raise ValueError(f"a benchmark named {name!r} exists")
        BENCHMARKS[name] = function
        return function

    return add


def race(*contestants: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Return the median seconds of each function, run in turns after one warm-up each.

    On a GPU a function's time ends when the GPU has done its work, not when it was asked to.
    """
    from guidance_edu.settings import device

    done = torch.cuda.synchronize if device().type == "cuda" else lambda: None
    for contestant in contestants:
        contestant()
        done()
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(repeats):
        for taken, contestant in zip(times, contestants, strict=True):
            start = time.perf_counter()
            contestant()
            done()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


@benchmark("mixture: matrix products against one einsum over components")
def mixture() -> list[Row]:
    """Time the exact denoiser, 4096 points that share a sigma, 1016 components, float32."""
    from guidance_edu.settings import generator

    torch.set_num_threads(1)  # what the chapters use
    n, k, sigma = 4096, 1016, 0.3
    world, parts = _mixture(k)
    x = 2 * torch.randn(n, 2, generator=generator(0), dtype=torch.float64).float()
    fast, direct = world.denoise(x, sigma), direct_denoise(parts, x, sigma)
    error = (fast - direct).abs().max().item() / sigma
    ours, theirs = race(
        lambda: world.denoise(x, sigma), lambda: direct_denoise(parts, x, sigma), repeats=3
    )
    what = f"denoise {n} x {k}, float32"
    return [Row(what, ours, theirs, 15.0, f"largest difference {error:.1e} of sigma * score")]


def _mixture(k: int):
    """Return a random mixture of k Gaussians in 2D as the book's class and as plain tensors."""
    from guidance_edu.settings import generator
    from toy_models.gaussian_mixture import GaussianMixture

    rng = generator(1)
    means = torch.randn(k, 2, generator=rng, dtype=torch.float64)
    roots = 0.05 * torch.randn(k, 2, 2, generator=rng, dtype=torch.float64)
    covariances = roots @ roots.mT + 1e-3 * torch.eye(2, dtype=torch.float64)
    weights = torch.rand(k, generator=rng, dtype=torch.float64) + 0.1
    world = GaussianMixture(weights, means, covariances, dtype=torch.float32)
    parts = [t.float() for t in (weights.log(), means, covariances)]
    return world, parts


def direct_denoise(parts: list[torch.Tensor], x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Denoise the direct way: every component at every point, one einsum for each sum."""
    log_weights, means, covariances = parts
    noisy = covariances + sigma**2 * torch.eye(x.shape[1], dtype=x.dtype)
    precision = torch.linalg.inv(noisy)
    offset = x[:, None] - means
    distance = torch.einsum("nki,kij,nkj->nk", offset, precision, offset)
    share = (log_weights - 0.5 * torch.logdet(noisy) - 0.5 * distance).softmax(-1)
    score = -torch.einsum("nk,kij,nkj->ni", share, precision, offset)
    return x + sigma**2 * score


@benchmark("guided: one batch against two passes")
def guided() -> list[Row]:
    """Time a guided step both ways, for networks of the book's 2D size and wider."""
    from guidance_edu.guidance import Guided
    from guidance_edu.negatives.condition import without_condition
    from guidance_edu.settings import device, generator

    class Network(torch.nn.Module):
        """A conditional denoiser about as large as the book's 2D networks."""

        null_label = 2

        def __init__(self, width: int):
            super().__init__()
            self.classes = torch.nn.Embedding(3, width)
            self.first = torch.nn.Linear(3, width)
            self.rest = torch.nn.Sequential(
                *[m for _ in range(3) for m in (torch.nn.Linear(width, width), torch.nn.SiLU())],
                torch.nn.Linear(width, 2),
            )

        def forward(self, x, sigma, condition=None):
            level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
            inputs = torch.cat([x, level.log()[:, None]], dim=1)
            return x + self.rest(self.first(inputs) + self.classes(condition))

    def compare(width: int, n: int) -> Row:
        model = Network(width).to(device()).requires_grad_(False)
        x = torch.randn(n, 2, generator=generator(0)).to(device())
        labels = torch.zeros(n, dtype=torch.long, device=device())
        negative = without_condition(model)
        as_one, as_two = (Guided(model, negative, w=2.0, batching=b) for b in ("one", "two"))
        plain, one, two = race(
            lambda: model(x, 0.5, labels),
            lambda: as_one(x, 0.5, labels),
            lambda: as_two(x, 0.5, labels),
            repeats=15,
        )
        note = f"of the unguided cost: two passes {two / plain:.2f}, one batch {one / plain:.2f}"
        return Row(f"two passes, width {width}, {n} points", two, one, note=note)

    torch.set_num_threads(1)
    return [compare(width, n) for width, n in ((64, 64), (64, 4096), (512, 4096))]


@benchmark("tree: training and sampling")
def tree() -> list[Row]:
    """Time one tree model from nothing, and the sampling of its figure."""
    from guidance_edu.guidance import Guided
    from guidance_edu.samplers import noise_levels, sample
    from guidance_edu.settings import generator
    from toy_models.recipes import train

    torch.set_num_threads(1)  # what the chapters use for tensors this small
    rows, models = [], {}
    for name in ("tree-main", "tree-guide"):
        start = time.perf_counter()
        models[name], _ = train(name)
        rows.append(Row(f"train {name}", time.perf_counter() - start))
    levels = noise_levels(32)
    x = levels[0] * torch.randn(8192, 2, generator=generator(0), dtype=torch.float64)
    x = x.to(next(models["tree-main"].parameters()).dtype)
    both = Guided(models["tree-main"], models["tree-guide"], w=2.0)
    plain, guided_too = race(
        lambda: sample(models["tree-main"], x, levels),
        lambda: sample(both, x, levels),
        repeats=1,
    )
    cost = f"{guided_too / plain:.2f} of the unguided cost"
    rows.append(Row("sample 8192 points, 32 Heun steps", plain))
    rows.append(Row("the same with autoguidance", guided_too, note=cost))
    return rows


@benchmark("images: what each method costs at 64x64")
def images() -> list[Row]:
    """Time one guided evaluation of the image model by every method, and count its memory.

    The reference is the naive way: positive and negative apart, one after the other. What the book
    uses is the last way of each note, where costs are told in evaluations of the unguided model.
    """
    from guidance_edu.attention import replaced
    from guidance_edu.guidance import Guided, guide
    from guidance_edu.negatives.attention import identity_attention, smoothed_attention
    from guidance_edu.negatives.clock import perturbed_time
    from guidance_edu.negatives.condition import random_condition, without_condition
    from guidance_edu.negatives.input import blurred_input
    from guidance_edu.settings import device, generator
    from toy_models.recipes import load

    torch.set_num_threads(1)  # what the chapters use
    n, sigma, w = 50, 1.0, 2.0
    model, small = (
        load(f"imagenet64-{name}").to(device()).requires_grad_(False) for name in ("main", "guide")
    )
    x = ((1 + sigma) * torch.randn(n, 3, 64, 64, generator=generator(0))).to(device())
    labels = (torch.arange(n) % 10).to(device())

    def doubled(negative):
        """Return positive and negative from one doubled batch."""
        if hasattr(negative, "rule"):
            with replaced(model, negative.layers, negative.rule, slice(n, None)):
                both = model(torch.cat([x, x]), sigma, torch.cat([labels, labels]))
        else:
            other, _, told = negative.inputs(x, sigma, labels)
            both = model(torch.cat([x, other]), sigma, torch.cat([labels, told]))
        return both[:n], both[n:]

    def ways(negative):
        """Return every way to a guided estimate that a negative has; the last is the book's."""

        def apart():
            return guide(model(x, sigma, labels), negative(x, sigma, labels), w)

        def in_one_batch():
            return guide(*doubled(negative), w)

        has_inputs, ours = hasattr(negative, "inputs"), Guided(model, negative, w)
        found = {"apart": apart}
        if has_inputs or hasattr(negative, "rule"):
            found["one batch"] = in_one_batch
        if hasattr(negative, "pair"):
            found["shared"] = lambda: ours(x, sigma, labels)
        # Without a shared pass, Guided takes one batch on a GPU and two passes on a CPU.
        return dict(reversed(found.items())) if has_inputs and x.device.type == "cpu" else found

    rng, methods = generator(1), {}
    negatives = {
        "no condition (CFG)": without_condition(model),
        "random class (ICG)": random_condition(model, 10, rng),
        "wrong clock (TSG)": perturbed_time(model, 0.1, rng),
        "smaller guide (autoguidance)": small,
        "blurred estimate (SAG), dec.16.0": blurred_input(model, "dec.16.0"),
    }
    for layer in ("enc.16.0", "mid.8", "dec.16.0"):
        negatives[f"identity attention (PAG), {layer}"] = identity_attention(model, [layer])
    negatives["blurred queries (SEG), dec.16.0"] = smoothed_attention(model, ["dec.16.0"], 1.0)
    for method, negative in negatives.items():
        methods |= {(method, way): run for way, run in ways(negative).items()}
    contestants = [lambda: model(x, sigma, labels), *methods.values()]
    plain, *taken = race(*contestants, repeats=3)
    memory, *used = (peak_memory(run) / 2**20 for run in contestants)
    rows = [Row(f"unguided, {n} images", plain, note=f"cost 1, {memory:.0f} MB beside the weights")]
    for method in negatives:
        seconds, said = {}, []
        for (name, way), second, size in zip(methods, taken, used, strict=True):
            if name == method:
                seconds[way] = second
                said.append(f"{way} {second / plain:.2f}, {size:.0f} MB")
        ours, naive = list(seconds.values())[-1], seconds["apart"]
        promised = 1.2 if method.endswith("dec.16.0") else None
        rows.append(Row(method, ours, naive, promised, "; ".join(said)))
    return rows


def peak_memory(run: Callable[[], object]) -> int:
    """Return the most bytes that tensors made by a function take at one time.

    Limits:  what exists before does not count, nor what one operation uses inside on a CPU.
    """
    from guidance_edu.settings import device

    if device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _Allocations() as made:
        run()
    return made.most


class _Allocations(TorchDispatchMode):
    """Count the bytes of all tensors that operations return, for as long as they live."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        given = {storage.data_ptr() for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            place, size = storage.data_ptr(), storage.nbytes()
            if size and place not in given and place not in self.alive:  # else a view
                self.alive[place] = size
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._forget, place)
        return result

    def _forget(self, place: int) -> None:
        self.now -= self.alive.pop(place)


def _storages(values: object) -> list[torch.UntypedStorage]:
    tensors = (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
    return [tensor.untyped_storage() for tensor in tensors]


@benchmark("key figure: the book's recipe against the published one, written plainly")
def key_figure() -> list[Row]:
    """Time the three networks and the samples of the paper's figure from nothing, both ways.

    A few steps of the published recipe are run, and their seconds multiplied; a full run is
    recorded by ``python -m book records published_recipe``. Samples take the same time however
    long a network was trained.
    """
    from toy_models.recipes import recipe_named, train
    from toy_models.sweeps import record
    from toy_models.sweeps.published_recipe import train_plainly

    torch.set_num_threads(1)
    ours, plainly, losses, trained, short = 0.0, 0.0, [], [], []
    for name in ("published-main", "published-guide", "published-unconditional-weak"):
        recipe, start = recipe_named(name), time.process_time()
        model, card = train(name)
        ours += time.process_time() - start
        trained.append(model)
        model, seconds = train_plainly(recipe.hidden, steps=4, classes=recipe.classes)
        plainly += statistics.median(seconds[1:]) * recipe.steps
        short.append(model)
        losses.append(f"{card['validation_loss']:.4f}")
    try:
        full = record("published_recipe").rows[0]
        note = f"full run {full['seconds']:.0f} s, validation loss {full['validation_loss']:.4f}"
    except FileNotFoundError:
        note = "no full run recorded"
    note = f"validation losses here {', '.join(losses)}; {note}"
    drawn = (_figure_samples(*trained), _figure_samples(*short))
    what = "three networks from nothing, CPU seconds"
    return [
        Row(what, ours, plainly, 50.0, note),
        Row("and the figure's samples", ours + drawn[0], plainly + drawn[1], 50.0),
    ]


def _figure_samples(main, guide, weak) -> float:
    """Return the CPU seconds of the figure's samples: alone, CFG, score x 1.4, autoguidance."""
    from guidance_edu.guidance import Guided
    from guidance_edu.samplers import noise_levels, sample
    from guidance_edu.settings import device, generator
    from toy_models.tree import published_tree

    world = published_tree().mixture("A")
    start = world.sample(2**14, generator(21), sigma=5.0).float().to(device())
    main, guide, weak = (network.to(device()) for network in (main, guide, weak))

    def sharper(x, sigma, condition=None):
        return x + 1.4 * (main(x, sigma) - x)

    clock = time.process_time()
    for denoiser in (main, Guided(main, weak, 4.0), sharper, Guided(main, guide, 3.0)):
        sample(denoiser, start, noise_levels(32, sigma_max=5.0))
    return time.process_time() - clock


def main(only: str = "") -> int:
    """Run the benchmarks whose names hold ``only``, print them and write ``_build/bench.json``."""
    chosen = {name: run for name, run in BENCHMARKS.items() if only in name}
    if not chosen:
        raise ValueError(f"no benchmark holds {only!r}; there are: {', '.join(BENCHMARKS)}")
    os.environ["GUIDANCE_EDU_PROGRESS"] = "0"
    threads, record, broken = torch.get_num_threads(), {}, []
    for name, run in chosen.items():
        torch.set_num_threads(threads)
        print(f"\n{name}", flush=True)
        rows = run()
        head = ("what", "seconds", "times faster", "promised", "")
        cells = [
            (
                row.what,
                f"{row.seconds:.3g}",
                "" if row.ratio is None else f"{row.ratio:.2f}",
                ""
                if row.at_least is None
                else f"{row.at_least:g}" + ("" if row.kept else " BROKEN"),
                row.note,
            )
            for row in rows
        ]
        print(table(head, cells, width=80), flush=True)
        record[name] = [asdict(row) | {"ratio": row.ratio} for row in rows]
        broken += [row.what for row in rows if not row.kept]
    torch.set_num_threads(threads)
    save(record, BUILD / "bench.json")
    if broken:
        print("\nNOT KEPT: " + "; ".join(broken))
    return 1 if broken else 0
