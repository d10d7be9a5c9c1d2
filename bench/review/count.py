"""What the review of the code counts: files, functions, parameters, and circles of modules within a crate.

    python3 bench/review/count.py        (from the project's root)

Lines are those that are not blank, tests included. Circles are looked for by the `use` paths of product code, by modules of
a crate's first level.
"""
import collections
import os
import re
import sys


def strip(s):
    # blank strings/comments/char literals
    out=[];i=0;n=len(s)
    while i<n:
        if s.startswith('//',i):
            j=s.find('\n',i); j=n if j<0 else j
            out.append(' '*(j-i)); i=j
        elif s.startswith('/*',i):
            j=s.find('*/',i)+2; out.append(re.sub(r'[^\n]',' ',s[i:j])); i=j
        elif s[i]=='"' or (s[i] in 'rb' and re.match(r'(br|r|b)(#*)"',s[i:]) and (i==0 or not (s[i-1].isalnum() or s[i-1]=='_'))):
            m=re.match(r'(br|r|b)?(#*)"',s[i:])
            raw=m.group(1) in('r','br')
            j=i+m.end()
            if raw:
                e=s.find('"'+m.group(2),j); e=n if e<0 else e+1+len(m.group(2))
            else:
                while s[j]!='"':
                    j+=2 if s[j]=='\\' else 1
                e=j+1
            out.append(re.sub(r'[^\n]',' ',s[i:e])); i=e
        elif s[i]=="'":
            m=re.match(r"'(\\.[^']*|[^'\\])'",s[i:])
            if m: out.append(' '*m.end()); i+=m.end()
            else: out.append(s[i]); i+=1
        else: out.append(s[i]); i+=1
    return ''.join(out)


files=0;lines=0;long=0;over500=0;fl=[];par6=par8=0;uns=0;idx=0
def params(sig):
    # sig inside parens of fn
    depth=0;n=0;cur=''
    for c in sig:
        if c in '([{<': depth+=1
        elif c in ')]}' or (c=='>' and not cur.endswith('-') and not cur.endswith('=')): depth-=1
        if c==',' and depth==0:
            if cur.strip(): n+=1
            cur=''
        else: cur+=c
    if cur.strip(): n+=1
    return n, sig
for root in ['crates','xtask']:
  for d,_,fs in os.walk(root):
    if '/target' in d: continue
    for f in fs:
        if not f.endswith('.rs'): continue
        p=os.path.join(d,f); t=open(p).read(); n=sum(1 for l in t.split('\n') if l.strip())
        files+=1; lines+=n; long=max(long,n); over500+=n>500
        s=strip(t)
        uns+=len(re.findall(r'\bunsafe\s*\{',s)); idx+=len(re.findall(r'as usize\]',s))
        for m in re.finditer(r'\bfn\s+\w+',s):
            i=m.end()
            # skip generics
            j=i
            if j<len(s) and s[j]=='<':
                dep=0
                while True:
                    if s[j]=='<':dep+=1
                    elif s[j]=='>' and s[j-1] not in '-=':
                        dep-=1
                        if dep==0: j+=1;break
                    j+=1
            if j>=len(s) or s[j]!='(': continue
            k=j;dep=0
            while True:
                if s[k] in '(':dep+=1
                elif s[k] in ')':
                    dep-=1
                    if dep==0:break
                k+=1
            n,_=params(s[j+1:k])
            sig=s[j+1:k]
            if re.match(r'\s*(&\s*(\'\w+\s*)?)?(mut\s+)?self\b',sig): n-=1
            par6+=n>=6; par8+=n>=8
            # body
            b=k;dd=0
            while b<len(s) and s[b] not in '{;': b+=1
            if b>=len(s) or s[b]==';': continue
            e=b;dep=0
            while True:
                if s[e]=='{':dep+=1
                elif s[e]=='}':
                    dep-=1
                    if dep==0:break
                e+=1
            body=s[m.start():e]
            fl.append(sum(1 for l in t[m.start():e].split('\n') if l.strip()))
print('files',files,'lines',lines,'longest',long,'>500',over500,'functions',len(fl),'median',sorted(fl)[len(fl)//2],'>80',sum(x>80 for x in fl),'>100',sum(x>100 for x in fl),'params>=6',par6,'>=8',par8,'unsafe',uns,'as usize]',idx)


def mods(crate):
    base=f'crates/{crate}/src'
    g=collections.defaultdict(set)
    names={}
    libuses={}
    files=[]
    for d,_,fs in os.walk(base):
        for f in fs:
            if f.endswith('.rs'): files.append(os.path.join(d,f))
    def modof(p):
        r=os.path.relpath(p,base)[:-3].split('/')
        if r[-1] in('mod','lib','main'): r=r[:-1]
        return r
    tops={ (modof(p) or [''])[0] for p in files}
    # reexports in lib.rs
    lib=strip(open(base+'/lib.rs').read()) if os.path.exists(base+'/lib.rs') else ''
    rex={}
    for m in re.finditer(r'pub(?:\(crate\))? use (\w+)::(\{[^}]*\}|[\w:]+)',lib):
        for n in re.findall(r'\w+',m.group(2)): rex[n]=m.group(1)
    for p in files:
        m=modof(p)
        if not m: continue
        if any('test' in x for x in m): continue
        s=strip(open(p).read())
        s=re.split(r'#\[cfg\(test\)\]\s*mod tests',s)[0]
        me=m[0]
        for r in re.findall(r'crate::(\w+)',s):
            t=r if r in tops else rex.get(r)
            if t and t!=me: g[me].add(t)
        for blk in re.findall(r'crate::\{([^}]*)\}',s):
            for r in re.findall(r'\w+',blk):
                t=r if r in tops else rex.get(r)
                if t and t!=me: g[me].add(t)
        if len(m)==1 and not p.endswith('mod.rs'):
            for r in re.findall(r'super::(\w+)',s):
                t=r if r in tops else rex.get(r)
                if t and t!=me: g[me].add(t)
        elif len(m)==1 or True:
            k='super::'*len(m)
            for r in re.findall(re.escape(k)+r'(\w+)',s):
                t=r if r in tops else rex.get(r)
                if t and t!=me: g[me].add(t)
    return g
def scc(g):
    idx={};low={};st=[];on=set();out=[];c=[0]
    sys.setrecursionlimit(10000)
    def go(v):
        idx[v]=low[v]=c[0];c[0]+=1;st.append(v);on.add(v)
        for w in g.get(v,()):
            if w not in idx: go(w);low[v]=min(low[v],low[w])
            elif w in on: low[v]=min(low[v],idx[w])
        if low[v]==idx[v]:
            comp=[]
            while True:
                w=st.pop();on.discard(w);comp.append(w)
                if w==v:break
            if len(comp)>1: out.append(comp)
    for v in list(g):
        if v not in idx: go(v)
    return out
for c in sorted(os.listdir('crates')):
    g=mods(c)
    for comp in scc(g):
        print(c,comp)
        for a in comp: print('   ',a,'->',sorted(g[a]&set(comp)))
