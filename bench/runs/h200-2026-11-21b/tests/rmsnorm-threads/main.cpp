#include "shim.h"
#include "k.inc"
static float tof(E e){ return widen(e); }
int main(){
  std::mt19937 g(1); std::normal_distribution<float> N;
  int shapes[][2]={{1,1000},{17,1024},{21,2048},{19,2064},{26,2048},{9,64},{30,896},{5,8192},{9,5120},{2,16}};
  int bad=0;
  for(auto&sh:shapes){ u64 rows=sh[0],c=sh[1]; for(int res=0;res<2;res++){
    std::vector<E> dy(rows*c),x(rows*c),w(c),r(rows*c),dx(rows*c); std::vector<float> rstd(rows);
    auto al=[](std::vector<E>&v){ for(auto&e:v) e=E(0x7fc0); };
    auto fill=[&](std::vector<E>&v){for(auto&e:v) e=narrow<E>(N(g));}; fill(dy);fill(x);fill(w);fill(r); al(dx); for(auto&q:rstd)q=std::fabs(N(g))+0.1f;
    u64 run=std::max<u64>(8,(rows+255)/256), cnt=(rows+run-1)/run; if(rows==26){run=11;cnt=3;}
    std::vector<float> part(cnt*c,NAN);
    int warps=std::max<u64>(1,(c+511)/512), teams=std::max(1,8/warps), th=32*warps*teams; blockDim={(unsigned)th,1,1};
    pthread_barrier_init(&block_bar,0,th); for(int i=1;i<=4;i++)pthread_barrier_init(&named[i],0,32*warps); for(int i=0;i<th/32;i++)pthread_barrier_init(&warp_bar[i],0,32);
    for(u64 b=0;b<cnt;b++){ for(auto&q:dynamic_shared)q={NAN,NAN,NAN,NAN}; std::vector<std::thread> t; for(int i=0;i<th;i++) t.emplace_back([&,i,b]{threadIdx={(unsigned)i,0,0};blockIdx={(unsigned)b,0,0}; backward(dx.data(),part.data(),dy.data(),x.data(),rstd.data(),w.data(),res?r.data():nullptr,rows,c,run,warps);}); for(auto&q:t)q.join(); }
    double worst=0,worstw=0; for(u64 i=0;i<rows;i++){ double m=0; for(u64 k=0;k<c;k++) m+=(double)tof(dy[i*c+k])*tof(w[k])*tof(x[i*c+k])*rstd[i]; m/=c; for(u64 k=0;k<c;k++){ double want=rstd[i]*((double)tof(dy[i*c+k])*tof(w[k])-(double)tof(x[i*c+k])*rstd[i]*m)+(res?tof(r[i*c+k]):0); double e=std::fabs(tof(dx[i*c+k])-want)/(std::fabs(want)+1); if(!(e<=worst)) worst=e; } }
    for(u64 k=0;k<c;k++){ double want=0,got=0; for(u64 i=0;i<rows;i++) want+=(double)tof(dy[i*c+k])*tof(x[i*c+k])*rstd[i]; for(u64 b=0;b<cnt;b++) got+=part[b*c+k]; double e=std::fabs(got-want)/(std::fabs(want)+1); if(!(e<=worstw))worstw=e; }
    bool ok=worst<(sizeof(E)==2?5e-3:1e-5)&&worstw<1e-5; bad+=!ok;
    printf("%s rows %llu c %llu teams %d warps %d residual %d: dx %.1e dw %.1e %s\n",sizeof(E)==2?"bf16":"f32",rows,c,teams,warps,res,worst,worstw,ok?"":"BAD"); fflush(stdout);
    pthread_barrier_destroy(&block_bar); for(int i=1;i<=4;i++)pthread_barrier_destroy(&named[i]); for(int i=0;i<th/32;i++)pthread_barrier_destroy(&warp_bar[i]);
  }}
  return bad;
}
