import torch, time, sys, os, threading
import torch.distributed as dist, torch.multiprocessing as mp
M=16384;K=2048;N=22016
def gemm_setup(d):
    a=torch.randn(M,K,device=f'cuda:{d}',dtype=torch.bfloat16);b=torch.randn(K,N,device=f'cuda:{d}',dtype=torch.bfloat16);c=torch.empty(M,N,device=f'cuda:{d}',dtype=torch.bfloat16)
    return a,b,c
def p2p():
    print('peer', torch.cuda.can_device_access_peer(0,1))
    S=[gemm_setup(0),gemm_setup(1)]
    n=64<<20
    X=[torch.zeros(n,dtype=torch.uint8,device=f'cuda:{d}') for d in (0,1)]
    Y=[torch.zeros(n,dtype=torch.uint8,device=f'cuda:{d}') for d in (0,1)]
    gs=[torch.cuda.Stream(d) for d in (0,1)]; ns=[torch.cuda.Stream(d,priority=-1) for d in (0,1)]
    for beside in (0,1,2):
        for d in (0,1): torch.cuda.synchronize(d)
        g0=[torch.cuda.Event(enable_timing=True) for _ in (0,1)]; g1=[torch.cuda.Event(enable_timing=True) for _ in (0,1)]
        ev=[[ (torch.cuda.Event(enable_timing=True),torch.cuda.Event(enable_timing=True)) for _ in range(40)] for _ in (0,1)]
        for d in (0,1):
            with torch.cuda.stream(gs[d]):
                g0[d].record(gs[d])
                if beside:
                    for _ in range(30): torch.mm(*S[d][:2],out=S[d][2])
                g1[d].record(gs[d])
        if beside!=2:
            for i in range(40):
                for d in (0,1):
                    with torch.cuda.device(d), torch.cuda.stream(ns[d]):
                        ev[d][i][0].record(ns[d]); Y[d].copy_(X[1-d],non_blocking=True); ev[d][i][1].record(ns[d])
        for d in (0,1): torch.cuda.synchronize(d)
        out=[]
        for d in (0,1):
            t=sorted(a.elapsed_time(b) for a,b in ev[d]) if beside!=2 else [0]*40
            out.append('copy med %.3f max %.3f ms (%.0f GB/s) gemm %.2f ms'%(t[20],t[-1],n/1e6/max(t[20],1e-9),g0[d].elapsed_time(g1[d])/30))
        print('p2p beside',beside,out,flush=True)
def worker(r,tag):
    torch.cuda.set_device(r); dist.init_process_group('nccl',init_method='tcp://127.0.0.1:29555',rank=r,world_size=2,device_id=torch.device('cuda',r))
    S=gemm_setup(r); n=128<<20
    x=torch.zeros(n//2,dtype=torch.uint8,device=f'cuda:{r}'); y=torch.zeros(n,dtype=torch.uint8,device=f'cuda:{r}')
    gs=torch.cuda.Stream(r)
    opts=dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    pg=dist.new_group([0,1],pg_options=opts)
    for _ in range(3): dist.all_gather_into_tensor(y,x,group=pg)
    torch.cuda.synchronize()
    for beside in (0,1,2):
        dist.barrier(); torch.cuda.synchronize()
        g0=torch.cuda.Event(enable_timing=True); g1=torch.cuda.Event(enable_timing=True)
        ev=[(torch.cuda.Event(enable_timing=True),torch.cuda.Event(enable_timing=True)) for _ in range(40)]
        with torch.cuda.stream(gs):
            g0.record()
            if beside:
                for _ in range(30): torch.mm(*S[:2],out=S[2])
            g1.record()
        s=torch.cuda.Stream(r,priority=-1)
        if beside!=2:
            with torch.cuda.stream(s):
                for a,b in ev:
                    a.record(s); dist.all_gather_into_tensor(y,x,group=pg); b.record(s)
        torch.cuda.synchronize()
        if beside!=2:
            t=sorted(a.elapsed_time(b) for a,b in ev)
        else: t=[0]*40
        print(tag,'rank',r,'beside',beside,'all-gather med %.3f max %.3f ms (%.0f GB/s) gemm %.2f ms'%(t[20],t[-1],n/2e6/max(t[20],1e-9),g0.elapsed_time(g1)/30),flush=True)
    dist.destroy_process_group()
if __name__=='__main__':
    if len(sys.argv)==1: p2p()
    else: mp.spawn(worker,args=(sys.argv[1],),nprocs=2)
