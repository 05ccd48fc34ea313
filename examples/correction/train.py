"""Trains the correction model; README.md says what comes out.

From the folder above this one: python -m correction.train OUT [--minutes 50 | --steps 4000] [--text FILE ...]
Every few minutes it leaves OUT as a model that works; --resume goes on from there, with a new schedule.
With --steps the same seed gives the same model on the same machine; with --minutes the schedule follows the clock.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import T5ForConditionalGeneration

from .model import PAD, configuration, decode, encode, new_model, save
from .noise import Noise
from .text import Pieces, documents

PROBES = (
    "teh quikc brwon fox",
    "I woudl liek to thnak you for yuor help yesterady.",
    "It is a truth universally acknowledged, that a single man must be in want of a wife.",
)
STATE = "training_state.pt"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that the model is written to")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=50.0, help="length of the schedule by the clock (50)")
    length.add_argument("--steps", type=int, help="length of the schedule in steps, instead of minutes")
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="plain text files, one document each")
    parser.add_argument("--resume", action="store_true", help="go on from what OUT holds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32, help="pieces in a step (32)")
    parser.add_argument("--longest", type=int, default=96, help="tokens of a piece, its end included (96)")
    parser.add_argument("--lr", type=float, default=3e-3, help="of matrices, under Muon; the rest has a third (3e-3)")
    parser.add_argument("--guide", type=float, default=0.3, help="weight of the attention's aim in the loss (0.3)")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--d-ff", type=int, default=512)
    parser.add_argument("--encoder", type=int, default=4, help="layers")
    parser.add_argument("--decoder", type=int, default=1, help="layers")
    parser.add_argument("--save-every", type=float, default=180.0, help="seconds between two checkpoints (180)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="start at once and run slower")
    return parser.parse_args(given)


def batches(pieces: Pieces, noise: Noise, rng: random.Random, size: int, longest: int) -> Iterator[torch.Tensor]:
    """Endless (3, size, longest) int64, padded at the end: sources, targets, and where each target token is from."""
    while True:
        batch = torch.full((3, size, longest), PAD)
        for row in range(size):
            while True:
                clean = pieces.draw(rng)
                source, target = encode(noise.apply(clean, rng)), encode(clean)
                if max(len(source), len(target)) <= longest:
                    break
            batch[0, row, : len(source)] = torch.tensor(source)
            batch[1, row, : len(target)] = torch.tensor(target)
            batch[2, row, : len(target)] = torch.tensor(origins(source, target))
        yield batch


def origins(source: Sequence[int], target: Sequence[int]) -> list[int]:
    """For each target token the place of the source token that it was typed as, or the nearest to where that is not."""
    result = []
    for _, i, end, j, until in SequenceMatcher(None, source, target, autojunk=False).get_opcodes():
        result += [min(i + k, max(end - 1, i), len(source) - 1) for k in range(until - j)]
    return result


class Guide:
    """Cross-attention's aim: how far half of its heads are from looking where a target token came from.

    Cross-entropy alone hardly tells a model that it lost its place, since every prefix it is given is right; answering
    for itself it then leaves text out or repeats it. Knowing the noise, we know the alignment and can teach it
    (supervised attention: Liu et al. 2016, "Neural Machine Translation with Supervised Attention").
    """

    def __init__(self, model: T5ForConditionalGeneration) -> None:
        self._attention = model.decoder.block[-1].layer[1].EncDecAttention
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._attention.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: torch.nn.Module, given: tuple[torch.Tensor, ...], options: dict[str, torch.Tensor]) -> None:
        self._seen = (given[0], options["key_value_states"])

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Mean -log of the attention on the right place, of the step just computed. batch: (3, size, longest)."""
        assert self._seen is not None
        queries, keys = (
            project(states).unflatten(-1, (-1, self._attention.key_value_proj_dim)).transpose(1, 2)
            for project, states in zip((self._attention.q, self._attention.k), self._seen, strict=True)
        )
        heads = queries.shape[1] // 2
        scores = (queries[:, :heads] @ keys[:, :heads].mT).float()
        scores = scores.masked_fill((batch[0] == PAD)[:, None, None], -torch.inf)
        places = batch[2][:, None, :, None].expand(-1, heads, -1, -1)
        missed = -scores.log_softmax(-1).gather(-1, places).squeeze(-1)
        wanted = (batch[1] != PAD)[:, None].expand(-1, heads, -1)
        return missed[wanted].mean()


def loss_of(model: T5ForConditionalGeneration, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per target token, in nats. batch: (3, size, longest)."""
    source, target = batch[0], batch[1]
    given = target.new_full(target.shape, PAD)
    given[:, 1:] = target[:, :-1]
    logits = model(input_ids=source, attention_mask=source != PAD, decoder_input_ids=given, use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=PAD)


def learning_rate(progress: float) -> float:
    """Share of the highest rate: up over the first 2 %, level to 50 %, then straight down to zero."""
    return min(1.0, progress / 0.02, max(0.0, (1.0 - progress) / 0.5))


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and position biases; weights kept in f32.

    The model that computes is bf16: on a CPU with AVX512-BF16 its matrix products take a quarter of the time.
    """

    def __init__(self, model: T5ForConditionalGeneration, lr: float) -> None:
        self.master = model
        self.model = copy.deepcopy(model).to(torch.bfloat16)
        matrices, rest = [], []
        for name, parameter in model.named_parameters():
            hidden = parameter.dim() == 2 and "relative" not in name and "shared" not in name
            (matrices if hidden else rest).append(parameter)
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        self.parts = [(muon, lr), (torch.optim.AdamW(rest, lr=lr / 3, betas=(0.9, 0.98), weight_decay=0.0), lr / 3)]

    def step(self, share: float) -> None:
        """Update the weights by the gradients of `model`, at this share of the learning rates."""
        for mine, theirs in zip(self.master.parameters(), self.model.parameters(), strict=True):
            assert theirs.grad is not None
            mine.grad = theirs.grad.float()
            theirs.grad = None
        torch.nn.utils.clip_grad_norm_(self.master.parameters(), 1.0)
        for part, lr in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * share
            part.step()
        with torch.no_grad():
            for mine, theirs in zip(self.master.parameters(), self.model.parameters(), strict=True):
                theirs.copy_(mine)


@torch.no_grad()
def correct(model: T5ForConditionalGeneration, texts: Sequence[str]) -> list[str]:
    """The model's greedy corrections of texts, decoded together."""
    sources = [torch.tensor(encode(text)) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True, padding_value=PAD)
    most = ids.shape[1] + 16
    out = model.generate(input_ids=ids, attention_mask=ids != PAD, max_new_tokens=most, do_sample=False, num_beams=1)
    return [decode(row[1:]) for row in out.tolist()]


def checkpoint(optimizer: Optimizer, step: int, characters: int, out: Path) -> None:
    """Write the model, and beside it what --resume needs."""
    save(optimizer.master, out)
    state = {"step": step, "characters": characters, "parts": [part.state_dict() for part, _ in optimizer.parts]}
    temporary = out / (STATE + ".tmp")
    torch.save(state, temporary)
    temporary.replace(out / STATE)


def train(options: argparse.Namespace, say: Callable[[str], None] = print) -> T5ForConditionalGeneration:
    """The trained model, also written to options.out."""
    torch.set_num_threads(options.threads)
    config = configuration(options.d_model, options.d_ff, options.encoder, options.decoder)
    model = T5ForConditionalGeneration.from_pretrained(options.out) if options.resume else None
    optimizer = Optimizer(model or new_model(config, options.seed), options.lr)
    step = characters = 0
    if options.resume:
        state = torch.load(options.out / STATE)
        step, characters = state["step"], state["characters"]
        for (part, _), saved in zip(optimizer.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
    texts = documents(options.text)
    kept = [d for d in texts if not d.held_out] or texts
    rng = random.Random(options.seed + step)
    stream = batches(Pieces(kept, options.longest - 1), Noise(), rng, options.batch, options.longest)
    guide = Guide(optimizer.model)
    compute = loss_of if options.no_compile else torch.compile(loss_of)
    first, began = step, time.monotonic()
    last_said = last_saved = began
    mean: float | None = None
    while True:
        now = time.monotonic()
        progress = (step - first) / options.steps if options.steps else (now - began) / (60 * options.minutes)
        if progress >= 1:
            break
        batch = next(stream)
        loss = compute(optimizer.model, batch)
        missed = guide.loss(batch)
        (loss + options.guide * missed).backward()
        optimizer.step(learning_rate(progress))
        step += 1
        characters += int((batch[1] != PAD).sum())
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if now - last_said >= 20:
            seen = f"{characters / 1e6:.2f} M characters"
            say(f"{now - began:6.0f} s  step {step}  {seen}  loss {mean:.4f}  aim {missed.item():.3f}")
            last_said = now
        if now - last_saved >= options.save_every:
            checkpoint(optimizer, step, characters, options.out)
            for text, answer in zip(PROBES, correct(optimizer.master, PROBES), strict=True):
                say(f"         {text!r} -> {answer!r}")
            last_saved = now
    checkpoint(optimizer, step, characters, options.out)
    say(f"{time.monotonic() - began:.0f} s, {step} steps, {characters / 1e6:.2f} M characters, loss {mean or 0:.4f}")
    return optimizer.master


if __name__ == "__main__":
    train(arguments(), lambda line: print(line, flush=True))
