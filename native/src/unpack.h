// One row of a packed matrix, as floats: embeddings.
#pragma once
#include "matrix.h"

namespace corral {

// Writes the row's `columns` weights.
void unpack_row(const Matrix& matrix, int64_t row, float* out);

}  // namespace corral
