// Flash attention backward on tensor cores, where a token sees its whole document.
#define FULL
#include "flash_backward.cuh"
