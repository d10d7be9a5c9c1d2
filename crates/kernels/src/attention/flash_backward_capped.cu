// Flash attention backward on tensor cores, of capped scores.
#define CAPPED
#include "flash_backward.cuh"
