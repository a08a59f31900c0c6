// Which instructions the kernels take here.

#include "level.h"

extern "C" int coserve_level() { return level(); }
