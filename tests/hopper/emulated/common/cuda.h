// csrc/common/cuda.h without a GPU: nothing is launched.
#pragma once
