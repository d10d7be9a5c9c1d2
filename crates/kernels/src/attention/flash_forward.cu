// Flash attention forward on tensor cores, of scores as they are.
#include "flash_forward.cuh"
