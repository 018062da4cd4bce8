"""NAYER in plain loops: the default form (noisy layer, K-to-1), every switch of the training procedure."""

import torch
from torch.optim import SGD, Adam

from dfkd.engine.core import Task
from dfkd.engine.plan import Plan
from dfkd.losses.divergence import agreeing_divergence, cross_entropy, knowledge_distillation
from dfkd.methods.nayer import NAYER
from dfkd.nets.generators import ConvGenerator, NoisyLayer, redraw
from dfkd.ops.augment import crop_flip
from dfkd.ops.labels import balanced_labels
from dfkd.ops.pixels import as_bytes, as_images
from dfkd.types import Moments


def train(task: Task, method: NAYER, plan: Plan) -> None:
    T, S, rng = task.teacher.freeze(), task.student, task.runtime.generator
    embeddings = task.text
    if embeddings is None:
        raise ValueError("this page needs text embeddings")
    Z = NoisyLayer(embeddings.shape[1], method.width, method.synthesis_batch, task.classes)
    G = ConvGenerator(method.width, task.image_shape, method.channels).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    made = method.synthesis_batch * (plan.warmup * method.warmup_batches + plan.rounds * method.batches)
    room, count = made if method.memory is None else min(made, method.memory), 0
    memory = torch.empty(room, *task.image_shape, dtype=torch.uint8)
    running: list[Moments] = []
    student = SGD(S.net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay, fused=True)
    for epoch in range(plan.warmup + plan.rounds):
        warming_up = epoch < plan.warmup
        if method.renew is not None and epoch % method.renew == 0:
            redraw(G)
            redraw(Z)
        S.eval()
        for _ in range(method.warmup_batches if warming_up else method.batches):
            Z.redraw()
            y = balanced_labels(method.synthesis_batch, task.classes, rng, embeddings.device)
            generator = Adam([*G.parameters(), *Z.parameters()], lr=method.lr, betas=method.betas, fused=True)
            lowest = float("inf")
            for _ in range(method.steps):
                images = G(Z(embeddings[y]))
                seen = T(crop := crop_flip(images, rng, method.pad, method.flip), stats=True)
                loss = method.alpha_cls * cross_entropy(seen.logits, y)
                if not warming_up:
                    loss = loss - method.alpha_adv * agreeing_divergence(seen.logits, S(crop).logits, method.mask)
                distances = []
                for i, (now, stored) in enumerate(zip(seen.stats, seen.stored, strict=True)):
                    mean, var = now
                    if running:
                        mean = torch.lerp(mean, running[i].mean, method.momentum)
                        var = torch.lerp(var, running[i].var, method.momentum)
                    distances += [torch.norm(mean - stored.mean), torch.norm(var - stored.var)]
                loss = loss + method.alpha_bn * torch.stack(distances).sum()
                if loss.item() < lowest:
                    lowest, best = loss.item(), images.detach().clone()
                generator.zero_grad()
                loss.backward()
                generator.step()
            new = [Moments(now.mean.detach(), now.var.detach()) for now in seen.stats]
            for i, old in enumerate(running):
                m = method.momentum
                new[i] = Moments(torch.lerp(new[i].mean, old.mean, m), torch.lerp(new[i].var, old.var, m))
            running = new
            for image in as_bytes(best):  # the newest overwrite the oldest
                memory[count % room] = image
                count += 1
        if warming_up:
            continue
        student.param_groups[0]["lr"] = plan.rate(epoch)
        S.train()
        for _ in range(plan.steps):
            rows = torch.randint(min(count, room), (plan.batch_size,), generator=rng)
            x = as_images(crop_flip(memory[rows], rng, method.pad, method.flip))
            with torch.no_grad():
                target = T(x).logits
            student.zero_grad()
            knowledge_distillation(target, S(x).logits, method.temperature).backward()
            student.step()
