"""Full-parameter training in learned subspaces (LSP-Offload, arXiv 2406.10181), and what it is compared with.

Every method trains stacks of equal matrices, (L, m, n), whose whole gradient autograd gives. By the chain rule that is
what a system does that compresses first: for W = W0 + kappa P S Qt the gradient of S is kappa Pt G Q (kappa is left
out of it, Adam does not see the scale). Nothing here saves memory; it says what the numbers are.

`Block` is lowtide's scheme: block-diagonal orthonormal projectors, learned from a sketch of one batch's gradient or drawn.
`OneSide` projects the shorter side alone, densely. `Sparse` is the paper's: rows with r values at random positions, learned by
Adam, applied in place. `Galore` (arXiv 2403.03507) and `Apollo` (arXiv 2412.05270) project one side. `Exact` is AdamW.
"""

import math

import torch


class Adam:
    """Moments of one array, PyTorch's AdamW without decay."""

    def __init__(self, betas=(0.9, 0.99), eps=1e-8):
        self.betas, self.eps, self.m, self.v, self.t = betas, eps, None, None, 0

    def step(self, g):
        """What the update is, over the learning rate."""
        if self.m is None:
            self.m, self.v = torch.zeros_like(g), torch.zeros_like(g)
        b1, b2 = self.betas
        self.t += 1
        self.m.lerp_(g, 1 - b1)
        self.v.mul_(b2).addcmul_(g, g, value=1 - b2)
        m = self.m / (1 - b1**self.t)
        v = self.v / (1 - b2**self.t)
        return m / (v.sqrt() + self.eps)


class Exact:
    """AdamW on the matrices themselves."""

    def __init__(self, w, **_):
        self.w, self.adam, self.g = w, Adam(), None

    def reduce(self, g, _step):
        self.g = g
        return g.square().sum()

    def update(self, scale, lr):
        self.w.add_(self.adam.step(self.g * scale), alpha=-lr)


def dealt(m, g):
    """The order of rows in which groups of g lie one behind another: chunks of 16 dealt round to the m / g groups."""
    groups = m // g
    chunks = torch.arange(m).reshape(-1, 16)
    return torch.cat([chunks[a::groups].reshape(-1) for a in range(groups)])


class Block:
    """Block-diagonal projectors: in each group of g features an orthonormal (g, r) matrix.

    learn: 'sketch' (k columns of random signs), 'full' (the whole gradient) or '' (drawn). A part `mixed` of the r columns is
    drawn in the complement of the learned ones. From `batches` steps' gradients are summed to learn from.
    """

    def __init__(self, w, seed=0, r=16, g=64, k=None, every=100, learn="sketch", mixed=0.0, batches=1, kappa=None):
        self.w, self.r, self.g, self.k = w, r, g, k or 2 * r
        self.every, self.learn, self.mixed, self.batches = every, learn, mixed, batches
        self.kappa = g / r if kappa is None else kappa
        self.gen = torch.Generator(w.device).manual_seed(seed)
        _, m, n = w.shape
        self.rows = dealt(m, g).to(w.device)
        self.back = torch.argsort(self.rows)
        self.p = self.q = None
        self.adam, self.w0 = Adam(), w.clone()
        self.s = w.new_zeros(w.shape[0], m * r // g, n * r // g)
        self.stats, self.seen, self.bias = None, 0, []

    def randn(self, *shape):
        return torch.randn(*shape, generator=self.gen, device=self.w.device)

    def signs(self, *shape):
        return torch.randint(0, 2, shape, generator=self.gen, device=self.w.device).float() * 2 - 1

    def left(self, x, p):
        """Pt x, for x of m rows: (L, m, c) to (L, m r / g, c)."""
        layers, m, c = x.shape
        x = x[:, self.rows].reshape(layers, -1, self.g, c)
        return torch.einsum("lagr,lagc->larc", p, x).reshape(layers, -1, c)

    def right(self, x, q):
        """x Q, for x of n columns."""
        layers, c, n = x.shape
        x = x.reshape(layers, c, -1, self.g)
        return torch.einsum("lcbg,lbgr->lcbr", x, q).reshape(layers, c, -1)

    def widen(self, s):
        """P s Qt."""
        layers = s.shape[0]
        x = s.reshape(layers, s.shape[1], -1, self.r)
        x = torch.einsum("lcbr,lbgr->lcbg", x, self.q).reshape(layers, s.shape[1], -1)
        x = x.reshape(layers, -1, self.r, x.shape[2])
        x = torch.einsum("larc,lagr->lagc", x, self.p).reshape(layers, -1, x.shape[3])
        return x[:, self.back]

    def drawn(self, layers, groups, r, beside=None):
        x = self.randn(layers, groups, self.g, r)
        if beside is not None:
            x = x - beside @ (beside.mT @ x)
        return torch.linalg.qr(x).Q

    def leading(self, stat):
        """Leading r eigenvectors of each group of a statistic (L, features, k)."""
        layers, features, k = stat.shape
        x = stat.reshape(layers, features // self.g, self.g, k)
        kept = self.r - int(self.r * self.mixed)
        # LAPACK: thousands of small matrices are slow on a GPU.
        top = torch.linalg.eigh((x @ x.mT).double().cpu()).eigenvectors[..., -kept:].float().to(x.device)
        if kept == self.r:
            return top
        return torch.cat([top, self.drawn(layers, features // self.g, self.r - kept, top)], dim=-1)

    def gather(self, g):
        """Adds a batch's gradient to what is learned from: Y of the m side in the dealt order, Z of the n side."""
        layers, m, n = g.shape
        if self.learn == "full":
            y, z = g[:, self.rows], g.mT
        else:
            if self.stats is None:
                self.omega, self.psi = self.signs(layers, n, self.k), self.signs(layers, m, self.k)
            y, z = (g @ self.omega)[:, self.rows], g.mT @ self.psi
        if self.stats is None:
            self.stats = [y.clone(), z.clone()]
        else:
            self.stats[0] += y
            self.stats[1] += z
        self.seen += 1

    def refresh(self, g):
        layers, m, n = g.shape
        if self.learn:
            self.gather(g)
            if self.seen < self.batches and self.p is not None:
                return
            p, q = self.leading(self.stats[0]), self.leading(self.stats[1])
            self.stats, self.seen = None, 0
        else:
            p, q = self.drawn(layers, m // self.g, self.r), self.drawn(layers, n // self.g, self.r)
        if self.p is not None:
            kept = self.right(self.left(g, self.p), self.q).square().sum()
            self.bias.append(math.sqrt(max(0.0, 1 - (kept / g.square().sum()).item())))
            self.w0 += self.kappa * self.widen(self.s)
            self.turn(p, q)
        self.p, self.q = p, q
        self.s.zero_()

    def turn(self, p, q):
        """Moments into the new coordinates (LDAdam's rule for both sides)."""
        if self.adam.m is None:
            return
        a, b = p.mT @ self.p, q.mT @ self.q
        b1, b2 = self.adam.betas
        c1, c2 = 1 - b1**self.adam.t, 1 - b2**self.adam.t
        m, v = self.adam.m / c1, self.adam.v / c2

        def both(x, a, b):
            layers, rows, columns = x.shape
            x = torch.einsum("lars,lasc->larc", a, x.reshape(layers, -1, self.r, columns)).reshape(layers, rows, columns)
            x = torch.einsum("lcbs,lbrs->lcbr", x.reshape(layers, rows, -1, self.r), b)
            return x.reshape(layers, rows, columns)

        turned = both(m, a, b)
        v = (both(v - m * m, a * a, b * b) + turned * turned).abs()
        self.adam.m, self.adam.v = turned * c1, v * c2

    def reduce(self, g, step):
        # The first batch alone gives the first projectors; later ones are learned from as many as were asked for.
        due = self.every and step > self.every and (step - 1) % self.every < self.batches
        if self.p is None or due:
            self.refresh(g)
        self.g_small = self.right(self.left(g, self.p), self.q)
        return self.g_small.square().sum()

    def update(self, scale, lr):
        self.s.add_(self.adam.step(self.g_small * scale), alpha=-lr)
        self.w.copy_(self.w0).add_(self.widen(self.s), alpha=self.kappa)


class Sparse:
    """The paper's projectors: (m, d) with r values a row at random positions, learned; the update goes into W in place."""

    def __init__(self, w, seed=0, r=16, share=0.5, every=100, alpha=0.3, rounds=100, rate=0.06, kappa=1.0):
        self.w, self.r, self.every, self.alpha = w, r, every, alpha
        self.rounds, self.rate, self.kappa = rounds, rate, kappa
        self.d = int(min(w.shape[1:]) * share)
        self.gen = torch.Generator(w.device).manual_seed(seed)
        self.p, self.adam, self.bias = None, Adam(), []

    def pattern(self, rows):
        layers = self.w.shape[0]
        at = torch.rand(layers, rows, self.d, generator=self.gen, device=self.w.device).topk(self.r, dim=2).indices
        mask = torch.zeros(layers, rows, self.d, device=self.w.device).scatter_(2, at, 1.0)
        shrunk = ((1 + self.w.shape[1] / self.d) * (1 + self.w.shape[2] / self.d)) ** -0.25
        x = torch.randn(layers, rows, self.d, generator=self.gen, device=self.w.device)
        return mask, x * mask * (shrunk / math.sqrt(self.r))

    @staticmethod
    def error(p, q, g):
        kept = p @ ((p.mT @ g) @ q) @ q.mT
        return (kept - g).square().sum((1, 2)) / g.square().sum((1, 2))

    def fit(self, g):
        masks, params = zip(*(self.pattern(rows) for rows in g.shape[1:]))
        params = [x.requires_grad_() for x in params]
        with torch.enable_grad():
            adam = torch.optim.Adam(params, lr=self.rate)
            for i in range(self.rounds):
                for group in adam.param_groups:
                    group["lr"] = self.rate * 0.5 * (1 + math.cos(math.pi * i / self.rounds))
                adam.zero_grad()
                self.error(*params, g).sum().backward()
                for x, mask in zip(params, masks):
                    x.grad.mul_(mask)
                adam.step()
        return [x.detach() for x in params]

    def reduce(self, g, step):
        if self.p is None or (step - 1) % self.every == 0:
            bias = None if self.p is None else self.error(self.p, self.q, g).mean().sqrt().item()
            if bias is None or bias > self.alpha:
                p, q = self.fit(g)
                if self.p is not None:
                    a, b = p.mT @ self.p, q.mT @ self.q
                    self.adam.m = a @ self.adam.m @ b.mT
                    self.adam.v = (a * a) @ self.adam.v @ (b * b).mT
                self.p, self.q = p, q
            if bias is not None:
                self.bias.append(bias)
        self.g_small = self.p.mT @ g @ self.q
        return self.g_small.square().sum()

    def update(self, scale, lr):
        delta = self.adam.step(self.g_small * scale)
        self.w.add_(self.p @ delta @ self.q.mT, alpha=-lr * self.kappa)


class OneSide:
    """A dense orthonormal projector of the shorter side: leading directions, from a sketch of k = 2 r columns or the whole gradient.
    Moments are turned as `Block`'s are."""

    def __init__(self, w, seed=0, share=1 / 16, every=100, learn="sketch"):
        self.w, self.every, self.learn = w, every, learn
        _, m, n = w.shape
        self.by_rows = m < n
        self.r = int(min(m, n) * share)
        self.kappa = math.sqrt(min(m, n) / self.r)
        self.gen = torch.Generator(w.device).manual_seed(seed)
        self.q, self.adam, self.bias = None, Adam(), []
        self.w0 = w.clone()
        self.s = w.new_zeros(w.shape[0], max(m, n), self.r)

    def whole(self, s):
        x = s @ self.q.mT
        return x.mT if self.by_rows else x

    def refresh(self, g):
        if self.learn == "sketch":
            signs = torch.randint(0, 2, (*g.shape[:2], 2 * self.r), generator=self.gen, device=g.device).float() * 2 - 1
            z = torch.linalg.qr(g.mT @ signs)
            u, _, _ = torch.linalg.svd(z.R.cpu())
            q = z.Q @ u[..., : self.r].to(g.device)
        else:
            q = torch.linalg.eigh((g.mT @ g).double().cpu()).eigenvectors[..., -self.r :].float().to(g.device)
        if self.q is not None:
            kept = (g @ self.q).square().sum()
            self.bias.append(math.sqrt(max(0.0, 1 - (kept / g.square().sum()).item())))
            self.w0 += self.kappa * self.whole(self.s)
            b = q.mT @ self.q
            b1, b2 = self.adam.betas
            c1, c2 = 1 - b1**self.adam.t, 1 - b2**self.adam.t
            m, v = self.adam.m / c1, self.adam.v / c2
            turned = m @ b.mT
            v = ((v - m * m) @ (b * b).mT + turned * turned).abs()
            self.adam.m, self.adam.v = turned * c1, v * c2
        self.q = q
        self.s.zero_()

    def reduce(self, g, step):
        g = g.mT if self.by_rows else g
        if self.q is None or (step - 1) % self.every == 0:
            self.refresh(g)
        self.g_small = g @ self.q
        return self.g_small.square().sum()

    def update(self, scale, lr):
        self.s.add_(self.adam.step(self.g_small * scale), alpha=-lr)
        self.w.copy_(self.w0).add_(self.whole(self.s), alpha=self.kappa)


class Galore:
    """One side projected to its leading singular vectors, moments kept across changes, as released."""

    def __init__(self, w, seed=0, share=1 / 16, every=200):
        self.w, self.every = w, every
        _, m, n = w.shape
        self.by_rows = m < n
        self.r = int(min(m, n) * share)
        self.kappa = math.sqrt(min(m, n) / self.r)
        self.q, self.adam, self.bias = None, Adam(), []

    def reduce(self, g, step):
        g = g.mT if self.by_rows else g
        if self.q is None or (step - 1) % self.every == 0:
            self.q = torch.linalg.eigh((g.mT @ g).double()).eigenvectors[..., -self.r :].float()
        self.g_small = g @ self.q
        return self.g_small.square().sum()

    def update(self, scale, lr):
        x = self.adam.step(self.g_small * scale) @ self.q.mT
        self.w.add_(x.mT if self.by_rows else x, alpha=-lr * self.kappa)


class Apollo:
    """The whole gradient scaled channel by channel as Adam scales its random projection. It needs the whole gradient where
    the update is, so it compresses state and nothing else."""

    def __init__(self, w, seed=0, share=1 / 16, every=200):
        self.w, self.every = w, every
        _, m, n = w.shape
        self.by_rows = m > n
        self.r = int(min(m, n) * share)
        self.gen = torch.Generator(w.device).manual_seed(seed)
        self.q, self.adam, self.bias, self.norm = None, Adam(), [], None

    def reduce(self, g, step):
        # Channels are the longer side; the shorter one is projected.
        g = g.mT if self.by_rows else g
        if self.q is None or (step - 1) % self.every == 0:
            shape = (g.shape[0], self.r, g.shape[1])
            self.q = torch.randn(shape, generator=self.gen, device=g.device) / math.sqrt(self.r)
        self.g, self.g_small = g, self.q @ g
        return g.square().sum()

    def update(self, scale, lr):
        small = self.g_small * scale
        step = self.adam.step(small)
        channel = step.norm(dim=1, keepdim=True) / (small.norm(dim=1, keepdim=True) + 1e-8)
        x = self.g * scale * channel
        norm = x.norm(dim=(1, 2), keepdim=True)
        if self.norm is not None:
            x = x / (norm / (self.norm + 1e-8)).clamp(min=1.01) * 1.01
            norm = x.norm(dim=(1, 2), keepdim=True)
        self.norm = norm
        self.w.add_(x.mT if self.by_rows else x, alpha=-lr)


METHODS = {"exact": Exact, "block": Block, "one side": OneSide, "sparse": Sparse, "galore": Galore, "apollo": Apollo}
