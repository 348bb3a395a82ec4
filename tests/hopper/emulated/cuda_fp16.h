// Half precision without a GPU: as the fibers' header has it.
#pragma once

#include "convnext/emulator.h"
