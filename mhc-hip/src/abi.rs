//! The declarations of this crate against those of hip-sys, which were made from AMD's headers by a machine. Nothing is called or linked.

use core::mem::offset_of;

use hip_sys::hiprt as theirs;
use mhc_core::gpu::vendor::Handle;

use crate::{
    api::{self, Code, attribute, constant},
    memory::PoolProperties,
};

/// A type to be inferred, one for each argument.
macro_rules! any {
    ($argument:ty) => {
        _
    };
}
pub(crate) use any;

/// A function's result and arguments.
pub(crate) trait Signature {
    const SIZES: &'static [usize];
}

macro_rules! signature {
    ($($argument:ident)*) => {
        impl<R, $($argument),*> Signature for unsafe extern "C" fn($($argument),*) -> R {
            const SIZES: &'static [usize] = &[size_of::<R>(), $(size_of::<$argument>()),*];
        }
    };
}
signature!(A);
signature!(A B);
signature!(A B C);
signature!(A B C D);
signature!(A B C D E F G H I J K);

/// The sizes of a function that is named and never called, so that nothing needs to be linked.
pub(crate) fn sizes<X, F: Signature>(_: impl FnOnce(X) -> F) -> Vec<usize> {
    F::SIZES.to_vec()
}

#[test]
fn functions_take_and_give_what_the_headers_say() {
    let all = api::signatures();
    assert!(all.len() > 40, "{} functions", all.len());
    for (name, ours, theirs) in all {
        assert_eq!(ours, theirs, "{name}: sizes of the result and the arguments");
    }
}

#[test]
fn codes_have_the_headers_numbers() {
    use theirs::hipError_t::*;
    let pairs = [
        (Code::SUCCESS, hipSuccess),
        (Code::OUT_OF_MEMORY, hipErrorOutOfMemory),
        (Code::NO_DEVICE, hipErrorNoDevice),
        (Code::INVALID_DEVICE, hipErrorInvalidDevice),
        (Code::INVALID_IMAGE, hipErrorInvalidImage),
        (Code::NO_BINARY, hipErrorNoBinaryForGpu),
        (Code::LAUNCH_FAILURE, hipErrorLaunchFailure),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(ours.0, theirs as i32, "{theirs:?}");
    }
}

#[test]
fn attributes_and_constants_have_the_headers_numbers() {
    use theirs::hipDeviceAttribute_t::*;
    let pairs = [
        (attribute::MAX_THREADS_PER_BLOCK, hipDeviceAttributeMaxThreadsPerBlock),
        (attribute::MULTIPROCESSOR_COUNT, hipDeviceAttributeMultiprocessorCount),
        (attribute::MAX_SHARED_MEMORY_PER_BLOCK, hipDeviceAttributeMaxSharedMemoryPerBlock),
        (attribute::MEMORY_POOLS_SUPPORTED, hipDeviceAttributeMemoryPoolsSupported),
    ];
    for (ours, theirs) in pairs {
        assert_eq!(ours, theirs as i32, "{theirs:?}");
    }
    assert_eq!(constant::NON_BLOCKING, theirs::hipStreamNonBlocking);
    assert_eq!(constant::PORTABLE, theirs::hipHostMallocPortable);
    assert_eq!(constant::THREAD_LOCAL, theirs::hipStreamCaptureMode::hipStreamCaptureModeThreadLocal as i32);
    assert_eq!(constant::RELEASE_THRESHOLD, theirs::hipMemPoolAttr::hipMemPoolAttrReleaseThreshold as i32);
    assert_eq!(constant::PINNED, theirs::hipMemAllocationType::hipMemAllocationTypePinned as i32);
    assert_eq!(constant::ON_DEVICE, theirs::hipMemLocationType::hipMemLocationTypeDevice as i32);
    assert_eq!(theirs::hipStreamCaptureStatus::hipStreamCaptureStatusNone as i32, 0, "what is not 0 is a capture");
}

#[test]
fn structures_lie_as_in_the_headers() {
    assert_eq!(size_of::<PoolProperties>(), size_of::<theirs::hipMemPoolProps>());
    assert_eq!(offset_of!(PoolProperties, allocation), offset_of!(theirs::hipMemPoolProps, allocType));
    assert_eq!(offset_of!(PoolProperties, location), offset_of!(theirs::hipMemPoolProps, location));
    let device = offset_of!(theirs::hipMemPoolProps, location) + offset_of!(theirs::hipMemLocation, id);
    assert_eq!(offset_of!(PoolProperties, device), device);
    // Where HIP 5 keeps the architecture's name; the version of the structure since HIP 6 is in no header that hip-sys was made from.
    assert_eq!(offset_of!(theirs::hipDeviceProp_t, gcnArchName), api::ARCH_BEFORE_6);
    let handles = [
        size_of::<theirs::hipStream_t>(),
        size_of::<theirs::hipEvent_t>(),
        size_of::<theirs::hipModule_t>(),
        size_of::<theirs::hipFunction_t>(),
        size_of::<theirs::hipGraph_t>(),
        size_of::<theirs::hipGraphExec_t>(),
        size_of::<theirs::hipMemPool_t>(),
        size_of::<theirs::hipDeviceptr_t>(),
    ];
    assert_eq!(handles, [size_of::<Handle>(); 8]);
}
