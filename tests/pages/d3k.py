"""D3K in plain loops: a fresh generator per batch, the literal D-Dhash against all codes of the batch before."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Adam

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import agreeing_divergence, cross_entropy, knowledge_distillation
from dfkd.losses.statistics import gaussian_divergence
from dfkd.methods.d3k import D3K
from dfkd.nets.supernet import SubnetShape, SuperNet
from dfkd.ops.augment import crop_flip
from dfkd.ops.hashing import dhash_codes
from dfkd.ops.labels import balanced_labels
from dfkd.ops.pixels import as_bytes, as_images


def train(task: Task, method: D3K, plan: Plan) -> None:
    T, S, rng = task.teacher.freeze(), task.student, task.runtime.generator
    total = method.synthesis_batch * method.batches * (plan.warmup + plan.rounds)
    room, made = min(method.memory or total, total), 0
    pool = torch.empty(room, *task.image_shape, dtype=torch.uint8)
    bank: Tensor | None = None
    student = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.warmup + plan.rounds):
        S.eval()
        for _ in range(method.batches):
            low, high = method.widths
            a, b, c = torch.randint(low, high + 1, (3,)).tolist()
            i, j, k = (method.kernels[n] for n in torch.randint(len(method.kernels), (3,)).tolist())
            G = SuperNet(method.width, task.image_shape, SubnetShape((a, b, c), (i, j, k)))
            G = G.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            z = torch.randn(method.synthesis_batch, method.width, generator=rng)
            y = balanced_labels(method.synthesis_batch, task.classes, rng, z.device)
            generator = Adam(G.parameters(), lr=method.lr, betas=method.betas, fused=True)
            lowest = float("inf")
            for _ in range(method.steps):
                images = G(z)
                crop = crop_flip(images, rng, method.pad, method.flip)
                t = T(crop, stats=True)
                loss = method.alpha * gaussian_divergence(t.stats, t.stored, method.bn_eps)
                loss = loss + method.beta * cross_entropy(t.logits, y)
                if epoch >= plan.warmup:
                    loss = loss - method.gamma * agreeing_divergence(t.logits, S(crop).logits, method.mask)
                if bank is not None:
                    gray = F.avg_pool2d(images, method.hash_pool).flatten(1)
                    soft = gray[:, :-1] - gray.mean(dim=1, keepdim=True)
                    bits = (gray[:, :-1] > gray[:, 1:]).float() + method.hash_lambda * (soft - soft.detach())
                    # mean over the bank of (bit - bank bit)² = (bit - mean)² + variance
                    spread = (bank - bank.mean(dim=0)).square().mean(dim=0)
                    loss = loss + method.theta * -((bits - bank.mean(dim=0)).square() + spread).mean()
                if float(loss.detach()) < lowest:
                    lowest, best = float(loss.detach()), images.detach().clone()
                generator.zero_grad()
                loss.backward()
                generator.step()
            pool[torch.arange(made, made + len(best)) % room] = as_bytes(best)
            made += len(best)
            bank = dhash_codes(best, method.hash_pool)
        if epoch < plan.warmup:
            continue
        student.param_groups[0]["lr"] = plan.rate(epoch)
        S.train()
        for _ in range(plan.steps):
            rows = torch.randint(min(made, room), (plan.batch_size,), generator=rng)
            x = as_images(crop_flip(pool[rows], rng, method.pad, method.flip))
            with torch.no_grad():
                target = T(x).logits
            student.zero_grad()
            knowledge_distillation(target, S(x).logits, method.temperature).backward()
            student.step()
