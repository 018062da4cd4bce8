"""CMI in plain loops: a fresh generator with codes per batch, a trained head, a bank of features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import agreeing_divergence, cross_entropy, knowledge_distillation
from dfkd.losses.statistics import moment_distance
from dfkd.methods.cmi import CMI
from dfkd.nets.generators import ConvGenerator
from dfkd.ops.augment import crop_flip, draw_boxes, resize_boxes
from dfkd.ops.pixels import as_bytes, as_images


def train(task: Task, method: CMI, plan: Plan) -> None:
    T, S, rng = task.teacher.freeze(), task.student, task.runtime.generator
    n, (_, height, width) = method.synthesis_batch, task.image_shape
    with torch.no_grad():
        d = sum(means.shape[1] for means in T(torch.zeros(1, *task.image_shape), means=True).means)
    h = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, method.head_width))
    G = ConvGenerator(method.width, task.image_shape, method.channels).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = Adam(h.parameters(), lr=method.lr, fused=True)
    total = n * (plan.warmup * method.warmup_batches + plan.rounds * method.batches)
    room, places, made = min(method.memory or total, total), min(method.bank, total), 0
    pool = torch.empty(room, *task.image_shape, dtype=torch.uint8)
    bank = torch.empty(places, 2 * d, dtype=torch.float16)
    student = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.warmup + plan.rounds):
        S.eval()
        for _ in range(method.warmup_batches if epoch < plan.warmup else method.batches):
            start_over(G)
            z = torch.randn(n, method.width, generator=rng).requires_grad_(True)
            y = torch.randint(task.classes, (n,), generator=rng)
            generator = Adam([*G.parameters()], lr=method.lr, betas=method.betas, fused=True)
            codes = Adam([z], lr=method.lr, betas=method.betas, fused=True)
            lowest = float("inf")
            for _ in range(method.steps):
                x = G(z)
                whole = crop_flip(x, rng, method.pad, method.flip)
                part = resize_boxes(x, draw_boxes(n, (height, width), rng, method.local_area))
                part = crop_flip(part, rng, 0, method.flip)
                t = T(whole, stats=True, means=True)
                loss = method.alpha_bn * moment_distance(t.stats, t.stored)
                loss = loss + method.alpha_cls * cross_entropy(t.logits, y)
                if epoch >= plan.warmup:
                    loss = loss - method.alpha_adv * agreeing_divergence(t.logits, S(whole).logits, method.mask)
                global_, local = torch.cat(t.means, dim=1), torch.cat(T(part, means=True).means, dim=1)
                old = bank[torch.randperm(min(made, places), generator=rng)[: method.negatives]].float()
                a = F.normalize(h(torch.cat([local, old[:, :d], global_, old[:, d:]])), dim=1)
                a, b = a[: n + len(old)], a[n + len(old) :].detach()
                similarity = a @ b.T / method.contrast_temperature
                each = similarity.logsumexp(dim=1) - similarity.diagonal()
                cr = each[:n].mean() + each[n:].mean() if len(old) else each.mean()
                loss = loss + method.alpha_cr * cr
                if float(loss.detach()) < lowest:
                    lowest, best = float(loss.detach()), x.detach().clone()
                    kept = torch.cat([local, global_], dim=1).detach()
                for optimizer in (generator, codes, head):
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in (generator, head, codes):
                    optimizer.step()
            turn = torch.arange(made, made + n)
            pool[turn % room], bank[turn % places] = as_bytes(best), kept.half()
            made += n
        if epoch < plan.warmup:
            continue
        student.param_groups[0]["lr"] = plan.rate(epoch)
        S.train()
        for _ in range(plan.steps):
            rows = torch.randint(min(made, room), (plan.batch_size,), generator=rng)
            images = as_images(crop_flip(pool[rows], rng, method.pad, method.flip))
            with torch.no_grad():
                target = T(images).logits
            student.zero_grad()
            knowledge_distillation(target, S(images).logits, method.temperature).backward()
            student.step()
    S.eval()


@torch.no_grad()
def start_over(G: nn.Module) -> None:
    """Weights from N(0, 0.02), those of BatchNorm from N(1, 0.02), no biases."""
    for layer in G.modules():
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if isinstance(weight, Tensor):
            weight.normal_(1 if isinstance(layer, nn.BatchNorm2d) else 0, 0.02)
        if isinstance(bias, Tensor):
            bias.zero_()
