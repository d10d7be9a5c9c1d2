// Flash attention backward on tensor cores, of scores as they are.
#include "flash_backward.cuh"
