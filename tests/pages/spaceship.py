"""Spaceship-Net in plain loops: features of three taps, exchanged in complementary pairs, and mSARC."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Adam

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.engine.probe import Probe
from dfkd.losses.statistics import moment_distance
from dfkd.methods.spaceship import SpaceshipNet
from dfkd.nets.generators import ConvGenerator
from dfkd.nets.initialise import initialise
from dfkd.ops.augment import crop_flip
from dfkd.ops.labels import balanced_labels
from dfkd.types import Readout


def train(task: Task, method: SpaceshipNet, plan: Plan) -> None:
    T, S, rng = task.teacher.freeze(), task.student, task.runtime.generator
    G = ConvGenerator(method.width, task.image_shape, method.channels)
    initialise(G, torch.nn.init.kaiming_normal_)
    G = G.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    total = method.synthesis_batch * (plan.warmup + plan.rounds)
    room, made = min(method.memory or total, total), 0
    pools: list[Tensor] = []
    student = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.warmup + plan.rounds):
        S.eval()
        z = torch.randn(method.synthesis_batch, method.width, generator=rng)
        y = balanced_labels(method.synthesis_batch, task.classes, rng, z.device)
        generator = Adam(G.parameters(), lr=method.lr, betas=method.betas, fused=True)
        lowest = float("inf")
        G.train()
        for _ in range(method.steps):
            taps = G.features(z)
            t = T(crop_flip(G.decode(taps[2], 2), rng, method.pad, method.flip), stats=True)
            inversion = method.lambda_cls * F.cross_entropy(t.logits, y)
            inversion = inversion + method.lambda_bn * moment_distance(t.stats, t.stored)
            if float(inversion.detach()) < lowest:
                lowest, best = float(inversion.detach()), [features.detach().half() for features in taps]
            generator.zero_grad()
            inversion.backward()
            generator.step()
        G.eval()
        pools = pools or [torch.empty(room, *features.shape[1:], dtype=torch.half) for features in best]
        for pool, features in zip(pools, best, strict=True):
            pool[torch.arange(made, made + len(features)) % room] = features
        made += len(z)
        chosen = torch.randint(3, (plan.steps,), generator=rng).tolist()
        exchanged = (torch.rand(plan.steps, generator=rng) < method.p).tolist()
        if epoch < plan.warmup:
            continue
        student.param_groups[0]["lr"] = plan.rate(epoch)
        S.train()
        for tap, exchange in zip(chosen, exchanged, strict=True):
            pool = pools[tap]
            features = pool[torch.randint(min(made, room), (plan.batch_size,), generator=rng)].float()
            if exchange:
                features = _exchange(features, method.fraction, rng)
            with torch.no_grad():
                x = crop_flip(G.decode(features, tap), rng, method.pad, method.flip)
            theirs, ours = T(x.clone().requires_grad_(True), maps=True), S(x, maps=True)
            y = theirs.logits.argmax(dim=1)
            p, q = (
                F.log_softmax(logits / method.temperature, dim=1) for logits in (theirs.logits.detach(), ours.logits)
            )
            kl = (p.exp() * (p - q)).sum(dim=1).mean() * method.temperature**2 / task.classes  # a mean over elements
            last_T, *stages_T = (cam.detach() for cam in _cams(T, theirs, y))
            last_S, *stages_S = _cams(S, ours, y)
            loss = method.lambda_kl * kl + method.lambda_cam * (last_S - last_T).square().mean()
            for a, b in zip(stages_S, stages_T, strict=True):
                loss = loss + method.lambda_gradcam * (a - b).square().mean()
            student.zero_grad()
            loss.backward()
            student.step()


def _exchange(features: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
    """Rows i and n - 1 - i swap the same random channels."""
    n, c = features.shape[:2]
    scores = torch.rand(n, c, generator=rng)
    mixed = features.clone()
    for i in range(n // 2):
        for channel in range(c):
            if scores[i].argsort()[channel] < int(fraction * c):
                mixed[i, channel] = features[n - 1 - i, channel]
                mixed[n - 1 - i, channel] = features[i, channel]
    return mixed


def _cams(net: Probe, out: Readout, y: Tensor) -> list[Tensor]:
    """CAM of every class at the last map, then Grad-CAM of class ``y`` at every stage, of constant weights."""
    if net.head is None:
        raise ValueError("this page needs linear heads")
    maps = [torch.einsum("nhwc,kc->nkhw", out.maps[-1].permute(0, 2, 3, 1), net.head.weight.detach())]
    chosen = out.logits.gather(1, y[:, None]).sum()
    for stage, slope in zip(out.maps, torch.autograd.grad(chosen, out.maps, retain_graph=True), strict=True):
        maps.append(torch.einsum("nhwc,nc->nhw", stage.permute(0, 2, 3, 1), slope.mean(dim=(2, 3))))
    return maps
