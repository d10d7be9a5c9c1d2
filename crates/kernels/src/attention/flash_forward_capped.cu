// Flash attention forward on tensor cores, of capped scores.
#define CAPPED
#include "flash_forward.cuh"
