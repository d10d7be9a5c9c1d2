"""Plain threads on a file with O_DIRECT, 4 MiB an operation: what a drive gives without lowtide.

python3 plain.py FILE seconds   second by second, by size of the region (drive.txt)
python3 plain.py FILE depth     by operations in flight, in turn (second/depth.txt)
"""

import mmap
import os
import random
import sys
import threading
import time

BLOCK = 4 << 20
GIB = 1 << 30


def run(path, region, mix, depth, seconds, limit=None):
    """Times at which blocks ended. `mix`: blocks read for blocks written; each kind has its part of the region."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    kinds = (mix[0] > 0) + (mix[1] > 0)
    part = region // BLOCK // kinds
    lock, sent, ended = threading.Lock(), {"all": 0, "r": 0, "w": 0}, []
    buffers = [mmap.mmap(-1, BLOCK) for _ in range(depth)]
    for buffer in buffers:
        buffer.write(os.urandom(1 << 20) * 4)
    begin = time.time()

    def work(buffer):
        view = memoryview(buffer)
        while True:
            with lock:
                if (limit and sent["all"] * BLOCK >= limit) or time.time() - begin > seconds:
                    return
                reads = sent["all"] % sum(mix) < mix[0]
                sent["all"] += 1
                kind = "r" if reads else "w"
                turn = sent[kind]
                sent[kind] += 1
            at = ((0 if reads or kinds == 1 else part) + turn % part) * BLOCK
            (os.preadv if reads else os.pwritev)(fd, [view], at)
            ended.append(time.time() - begin)

    threads = [threading.Thread(target=work, args=(b,)) for b in buffers]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    os.close(fd)
    return ended


def rate(ended):
    return len(ended) * BLOCK / max(ended) / 1e9


def told(name, ended):
    each = [0] * (int(max(ended)) + 1)
    for t in ended:
        each[int(t)] += 1
    line = " ".join(f"{n * BLOCK / 1e9:.1f}" for n in each)
    print(f"{name:34s} {rate(ended):5.2f} GB/s in {max(ended):5.1f} s | {line}", flush=True)


READ, WRITE, MIXED = (1, 0), (0, 1), (1, 1)
path, what = sys.argv[1:]
if what == "seconds":
    big = 24 * GIB
    told("first write 24G", run(path, big, WRITE, 8, 60, big))
    for _ in range(2):
        told("write again 24G", run(path, big, WRITE, 8, 60, big))
        told("read 24G", run(path, big, READ, 8, 60, big))
        told("mixed 24G", run(path, big, MIXED, 8, 8))
        for gib, seconds in ((4, 5), (1, 3)):
            for name, mix in (("write", WRITE), ("read", READ), ("mixed", MIXED)):
                told(f"{name} {gib}G region", run(path, gib * GIB, mix, 8, seconds))
    for depth in (2, 4, 16, 32):
        for name, mix in (("read", READ), ("write", WRITE), ("mixed", MIXED)):
            told(f"{name} 24G depth {depth}", run(path, big, mix, depth, 4))
else:
    size, depths, rates = 4 * GIB, [1, 2, 4, 8], {}
    run(path, size, WRITE, 1, 600, size)
    for _ in range(4):
        for name, mix in (("read", READ), ("write", WRITE), ("mixed", MIXED)):
            for depth in random.sample(depths, len(depths)):
                rates.setdefault((name, depth), []).append(rate(run(path, size, mix, depth, 1)))
    for (name, depth), all_of in sorted(rates.items()):
        line = " ".join(f"{x:.2f}" for x in all_of)
        print(f"{name:6s} block 4 MiB depth {depth:2d}: median {sorted(all_of)[2]:.2f}   {line}")
os.unlink(path)
