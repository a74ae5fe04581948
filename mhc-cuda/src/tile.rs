//! Tensor maps: what the copy engine of compute capability 9.0 must know of an operand.

use core::{ffi::c_uint, ptr};

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Outside, CUtensorMapInterleave as Interleave,
    CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
};
use mhc_core::{
    DType, RawView, Result,
    gpu::{Arg, TileStreams, vendor::Context as _},
};

use crate::context::Context;

/// Bytes of a row of a tile in shared memory, which is what the copy engine permutes.
const ROW: usize = 128;

/// The map of `[T, n, C]` (or `[T, C]`, as if n were 1). Of 16-bit types it is seen as `[n, C/64, T, 64]`, in tiles `[n, channels/64, tokens,
/// 64]`, of f32 as `[1, n, T, C]`, in tiles `[1, n, tokens, channels]` of 32 channels, as rows may end anywhere there; or in tiles of one
/// stream instead of n. Rows are 128 bytes in
/// both, whose 16-byte pieces are permuted by the row. Tokens and channels past the last are zeros.
pub(crate) fn encode(
    context: &Context,
    view: &RawView,
    tokens: u32,
    channels: u32,
    streams: TileStreams,
) -> Result<[u64; Arg::MAP_CELLS]> {
    let (shape, strides) = (view.layout.shape(), view.layout.strides());
    let (first, last) = (0, shape.len() - 1);
    let (n, stream) = if last == 2 { (shape[1], strides[1]) } else { (1, shape[last]) };
    let kind = match view.dtype {
        DType::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
    };
    // One token or stream has no distance, but the map wants some multiple of 16 bytes.
    let step = |elements: usize| ((elements * view.dtype.size()) as u64).max(16);
    let (all, token, stream) = (shape[last] as u64, step(strides[first]), step(stream));
    let (row, rows) = (ROW / view.dtype.size(), channels * view.dtype.size() as u32 / ROW as u32);
    let deep = if streams == TileStreams::One { 1 } else { n as c_uint };
    let (sizes, steps, tile) = match view.dtype {
        DType::F32 => ([all, shape[first] as u64, n as u64, 1], [token, stream, stream], [channels, tokens, deep, 1]),
        _ => (
            [row as u64, shape[first] as u64, all / row as u64, n as u64],
            [token, ROW as u64, stream],
            [row as c_uint, tokens, rows, deep],
        ),
    };
    let each: [c_uint; 4] = [1; 4];
    let mut map = Map([0; Arg::MAP_CELLS]);
    context.call("cuTensorMapEncodeTiled", |api| {
        // SAFETY: `map` has the size and alignment of a tensor map (checked below); the arrays have as many numbers as the 4 axes want
        // and live to the end of the call, which reads no device memory.
        unsafe {
            (api.tensor_map)(
                ptr::from_mut(&mut map).cast::<CUtensorMap>(),
                kind as c_uint,
                4,
                view.ptr.0 as *mut _,
                sizes.as_ptr(),
                steps.as_ptr(),
                tile.as_ptr(),
                each.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE as c_uint,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B as c_uint,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B as c_uint,
                Outside::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE as c_uint,
            )
        }
    })?;
    Ok(map.0)
}

/// Room for a map, aligned as any version of the driver wants it.
#[repr(C, align(128))]
struct Map([u64; Arg::MAP_CELLS]);

const _: () = assert!(size_of::<CUtensorMap>() == size_of::<Map>() && align_of::<CUtensorMap>() <= align_of::<Map>());
