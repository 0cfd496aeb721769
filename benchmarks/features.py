"""Tokens a second of Prudent's encoder against what people use: same model, same texts, same dtype, mixed lengths.

    python benchmarks/features.py            # under two minutes on two idle cores; --short: under one
    python benchmarks/features.py --rows 512 --repeats 7

Peers: the transformers feature-extraction pipeline (batches of 16, in the order given, its token states as tensors)
and, where it is installed, sentence-transformers' ``encode`` (batches of 32, which it sorts by length), both without
the head over the vocabulary. Three kinds of rows: ``single`` (every prompt once), ``pairs`` (two answers a prompt) and
``pool`` (sixteen). Sides take turns; ratios are taken within a turn. Tokens are those of the texts: padding earns
nothing, and a shared prompt counts for every text that holds it. Nothing is read from or written to the feature cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results
import torch

from prudent.features.backbone import backbone_of
from prudent.features.encoder import Encoder
from prudent.features.models import converted_default, dtype_name, load_language_model
from prudent.features.rendering import Renderer
from prudent.seeding import numpy_generator

WORDS = (
    "harbour lamp river answer quiet seven bread window clock red because under often write small people water letter "
    "through garden paper never music stone evening road might early winter green field question voice morning"
)
ANSWERS = {"single": 1, "pairs": 2, "pool": 16}
ROWS = {"single": "every prompt once", "pairs": "two answers a prompt", "pool": "sixteen answers a prompt"}


def make_texts(rows: int, answers: int, seed: int) -> tuple[list[str], list[str]]:
    """Prompts and responses of random words; lengths are log-normal, median 30 and 60 words."""
    random = numpy_generator(seed)

    def words(median: float, most: int) -> str:
        count = int(min(most, max(3, random.lognormal(0.0, 0.7) * median)))
        return " ".join(random.choice(WORDS.split(), count))

    prompts = [words(30, 200) for _ in range(-(-rows // answers))]
    repeated = [prompt for prompt in prompts for _ in range(answers)][:rows]
    return repeated, [words(60, 400) for _ in range(rows)]


def spent(device: torch.device) -> float:
    """Seconds so far: of processor, or on the clock, when a GPU has done what it was given."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(dtype: torch.dtype, device: torch.device, seconds: float = 0.5) -> float:
    """FLOP a second (``spent``) of the best of several matrix products in ``dtype``, with the threads in use."""
    best = 0.0
    for rows, inner, columns in ((1024, 576, 1536), (2048, 576, 576), (2048, 2048, 2048)):
        a, b = (torch.randn(size, inner).to(device, dtype) for size in (rows, columns))
        began, count = spent(device), 0
        while spent(device) - began < seconds / 3:
            torch.nn.functional.linear(a, b)
            count += 1
        best = max(best, 2.0 * rows * inner * columns * count / (spent(device) - began))
    return best


def flops(body: Any, lengths: list[int]) -> float:
    """Floating-point operations of plain forward passes over texts of these lengths: products with every weight of
    the blocks, and causal attention's two products."""
    settings = body.config
    weights = sum(p.numel() for p in body.parameters()) - body.get_input_embeddings().weight.numel()
    width = settings.num_attention_heads * getattr(settings, "head_dim", settings.hidden_size)
    return sum(2.0 * weights * n + 2.0 * settings.num_hidden_layers * width * n * n for n in lengths)


def pipeline_side(model: Any, tokenizer: Any) -> Callable[[list[str]], torch.Tensor]:
    from transformers import pipeline

    extract = pipeline(
        "feature-extraction", model=backbone_of(model), tokenizer=tokenizer, batch_size=16, device=model.device
    )
    options = {"add_special_tokens": False}

    def run(texts: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            states = extract(texts, return_tensors=True, tokenize_kwargs=options)
        lengths = map(len, tokenizer(texts, **options)["input_ids"])
        return torch.stack([state[0, length - 1] for state, length in zip(states, lengths)]).float()

    return run


def sentence_side(folder: Path, dtype: torch.dtype, device: torch.device) -> Callable[[list[str]], torch.Tensor] | None:
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer
    except ImportError:
        return None
    body = Transformer(str(folder), max_seq_length=1024, model_kwargs={"dtype": dtype})
    whole = SentenceTransformer(
        modules=[body, Pooling(body.get_word_embedding_dimension(), "lasttoken")], device=str(device)
    )
    assert next(whole.parameters()).dtype == dtype, "both sides must compute in one dtype"
    return lambda texts: (
        whole.encode(texts, batch_size=32, convert_to_tensor=True, show_progress_bar=False).float().cpu()
    )


def turn(sides: dict[str, Callable[[], torch.Tensor]]) -> dict[str, dict[str, float]]:
    """One turn: by side, seconds on the clock, seconds of processor (all threads), and the least cosine between its
    vectors and the first side's. On a machine that others use, the clock says more about them than about the sides."""
    first, found = None, {}
    for name, run in sides.items():
        clock, processor = time.perf_counter(), time.process_time()
        vectors = run()
        seconds = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
        first = vectors if first is None else first
        found[name] = {**seconds, "cosine": float(torch.nn.functional.cosine_similarity(vectors, first).min())}
    return found


def spread(values: list[float]) -> dict[str, Any]:
    return results.figure("", values)


def renamed(found: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    """A figure of ``measure`` under a name that says what it is."""
    return {**found, "name": name, **more}


def measure(kind: str, args: argparse.Namespace, model: Any, tokenizer: Any, peers: dict[str, Any]) -> dict[str, Any]:
    """One kind of rows: speeds by side, ratios within each turn, share of the peak."""
    prompts, responses = make_texts(args.rows, ANSWERS[kind], args.seed)
    ids = [text.ids for text in Renderer(tokenizer, 1024).conversations(prompts, responses)]
    texts = tokenizer.batch_decode(ids)
    encoder = Encoder((model, tokenizer), cache=None, progress=False)
    sides: dict[str, Callable[[], Any]] = {"prudent": lambda: encoder.encode(prompts, responses)}
    sides |= {name: (lambda run=run: run(texts)) for name, run in peers.items()}
    sides["prudent"]()  # warm
    turns, shares, total = [], [], sum(map(len, ids))
    for _ in range(args.repeats):
        before = peak(encoder.dtype, model.device)
        turns.append(turn(sides))
        top = max(before, peak(encoder.dtype, model.device))
        stats = encoder.stats
        done = flops(encoder.body, list(map(len, ids))) * (stats.tokens - stats.padding) / total
        of = "processor" if model.device.type == "cpu" else "clock"
        shares.append(done / turns[-1]["prudent"][of] / top)

    def ratios(of: str) -> dict[str, dict[str, float]]:
        return {name: spread([t[name][of] / t["prudent"][of] for t in turns]) for name in peers}

    return {
        "rows": args.rows,
        "tokens": total,
        "padding_share": encoder.stats.padding_share,
        "shared_token_share": encoder.stats.shared / total,
        "tokens_per_second": {name: spread([total / t[name]["clock"] for t in turns]) for name in sides},
        "tokens_per_processor_second": {name: spread([total / t[name]["processor"] for t in turns]) for name in sides},
        "times_faster_than": ratios("clock"),
        "times_less_processor_than": ratios("processor"),
        "share_of_matmul_peak": spread(shares),
        "least_cosine_to_prudents_vector": {name: turns[-1][name]["cosine"] for name in peers},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="8 rows, twice")
    parser.add_argument("--rows", type=int, help="24")
    parser.add_argument("--repeats", type=int, help="3")
    parser.add_argument("--dtype", default=None, help="float32 or bfloat16; default: what Prudent would pick")
    parser.add_argument("--kinds", nargs="+", choices=list(ANSWERS), default=list(ANSWERS))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "features.json")
    args = parser.parse_args()
    args.rows = args.rows or (8 if args.short else 24)
    args.repeats = args.repeats or (2 if args.short else 3)
    if args.threads:
        torch.set_num_threads(args.threads)
    model, tokenizer = load_language_model("smollm2", dtype=args.dtype)
    peers = {"transformers pipeline": pipeline_side(model, tokenizer)}
    if (run := sentence_side(converted_default(), model.dtype, model.device)) is not None:
        peers["sentence-transformers"] = run
    kinds = {kind: measure(kind, args, model, tokenizer, peers) for kind in args.kinds}
    figures = []
    for kind, found in kinds.items():
        note = f"{kind}: {ROWS[kind]}, {found['rows']} rows, {found['tokens']:,} tokens, {dtype_name(model.dtype)}"
        speed = found["tokens_per_processor_second"]
        fastest = min(peers, key=lambda name, found=found: found["times_less_processor_than"][name]["median"])
        figures += [
            renamed(
                found["times_less_processor_than"][fastest],
                f"features, against {fastest}, the faster peer",
                at_least=1.5,
                note=note,
            ),
            renamed(
                found["share_of_matmul_peak"],
                "features, share of the matrix-product peak",
                unit="",
                at_least=0.6,
                note=note,
            ),
            renamed(speed["prudent"], "features", unit="tokens a second of processor", note=note),
        ]
    results.write(
        args.out,
        "Features",
        figures,
        rows=[{"kind": kind, **found} for kind, found in kinds.items()],
        packages=("sentence-transformers",),
        model="SmolLM2-135M-Instruct",
        dtype=dtype_name(model.dtype),
    )


if __name__ == "__main__":
    main()
