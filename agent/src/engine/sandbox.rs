//! Owns the program that a sandbox runs and the image it comes in, both made here byte by byte.
//!
//! The program waits for ever and does nothing else: no libc, no shell, no file beside itself. Refuses
//! processors that it was not written for; the same processor always gets the same bytes.

mod archive;

pub(crate) use archive::{USER, image};

use holdfast_proto::image::Platform;

/// The image's name in the engine's store. Its tag grows when the image's content changes.
pub const IMAGE: &str = "holdfast.local/sandbox:1";
/// Where the program is in the image.
pub(crate) const PROGRAM_PATH: &str = "/pause";

/// There is no program for this device's processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no sandbox program for {0}, only for amd64, arm64 and arm: set `x-holdfast.sandbox: false`"
)]
pub struct NoProgram(pub Platform);

/// What differs between the processors.
struct Machine {
    /// Whether addresses are 64 bits wide.
    is_64_bit: bool,
    /// The processor's number in ELF headers (`e_machine`).
    elf_number: u16,
    /// The processor's flags in ELF headers (`e_flags`).
    elf_flags: u32,
    /// The program.
    code: &'static [u8],
}

/// Waits in the system call `pause`, and again should it ever come back.
const AMD64: Machine = Machine {
    is_64_bit: true,
    elf_number: 62,
    elf_flags: 0,
    code: &[
        0xb8, 0x22, 0x00, 0x00, 0x00, // mov eax, 34 (pause)
        0x0f, 0x05, // syscall
        0xeb, 0xf7, // jmp to the first instruction
    ],
};

/// This processor's Linux has no `pause`: `ppoll` of nothing, without a time limit, is the same.
const ARM64: Machine = Machine {
    is_64_bit: true,
    elf_number: 183,
    elf_flags: 0,
    code: &[
        0x00, 0x00, 0x80, 0xd2, // mov x0, #0: no files
        0x01, 0x00, 0x80, 0xd2, // mov x1, #0: none of them
        0x02, 0x00, 0x80, 0xd2, // mov x2, #0: no time limit
        0x03, 0x00, 0x80, 0xd2, // mov x3, #0: no signal mask
        0x28, 0x09, 0x80, 0xd2, // mov x8, #73 (ppoll)
        0x01, 0x00, 0x00, 0xd4, // svc #0
        0xfa, 0xff, 0xff, 0x17, // b to the first instruction
    ],
};

/// Instructions that every ARM from version 5 on knows; version 5 of its binary interface.
const ARM: Machine = Machine {
    is_64_bit: false,
    elf_number: 40,
    elf_flags: 0x0500_0000,
    code: &[
        0x1d, 0x70, 0xa0, 0xe3, // mov r7, #29 (pause)
        0x00, 0x00, 0x00, 0xef, // svc #0
        0xfc, 0xff, 0xff, 0xea, // b to the first instruction
    ],
};

/// Where the program is loaded: a multiple of every page size that Linux uses.
const LOAD_ADDRESS: u64 = 0x40_0000;
/// The largest page size that Linux uses on these processors.
const PAGE: u64 = 0x1_0000;

/// The program for this platform as an executable file.
pub fn program(platform: &Platform) -> Result<Vec<u8>, NoProgram> {
    let machine = match (platform.os.as_str(), platform.architecture.as_str()) {
        ("linux", "amd64") => AMD64,
        ("linux", "arm64") => ARM64,
        ("linux", "arm") => ARM,
        _ => return Err(NoProgram(platform.clone())),
    };
    Ok(executable(&machine))
}

/// An ELF file (System V ABI, "Object Files") with one segment: the file itself, headers and code.
fn executable(machine: &Machine) -> Vec<u8> {
    let (header_bytes, segment_bytes): (u16, u16) = if machine.is_64_bit {
        (64, 56)
    } else {
        (52, 32)
    };
    let code_at = u64::from(header_bytes + segment_bytes);
    let mut file = File {
        is_64_bit: machine.is_64_bit,
        bytes: Vec::new(),
    };
    // e_ident: magic, class, little endian, version 1, System V, padding.
    let class = if machine.is_64_bit { 2 } else { 1 };
    file.bytes.extend([0x7f, b'E', b'L', b'F', class, 1, 1]);
    file.bytes.resize(16, 0);
    file.half(2); // e_type: executable
    file.half(machine.elf_number); // e_machine
    file.word(1); // e_version
    file.address(LOAD_ADDRESS + code_at); // e_entry
    file.address(u64::from(header_bytes)); // e_phoff
    file.address(0); // e_shoff: no sections
    file.word(machine.elf_flags); // e_flags
    file.half(header_bytes); // e_ehsize
    file.half(segment_bytes); // e_phentsize
    file.half(1); // e_phnum
    file.half(0); // e_shentsize
    file.half(0); // e_shnum
    file.half(0); // e_shstrndx

    let size = code_at + machine.code.len() as u64;
    let (load, readable_and_executable) = (1, 5);
    file.word(load); // p_type
    if machine.is_64_bit {
        file.word(readable_and_executable); // p_flags
    }
    file.address(0); // p_offset
    file.address(LOAD_ADDRESS); // p_vaddr
    file.address(LOAD_ADDRESS); // p_paddr
    file.address(size); // p_filesz
    file.address(size); // p_memsz
    if !machine.is_64_bit {
        file.word(readable_and_executable); // p_flags
    }
    file.address(PAGE); // p_align
    file.bytes.extend(machine.code);
    file.bytes
}

/// Writes numbers as ELF has them, little endian.
struct File {
    is_64_bit: bool,
    bytes: Vec<u8>,
}

impl File {
    fn half(&mut self, value: u16) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// As wide as the processor's addresses.
    fn address(&mut self, value: u64) {
        let bytes = value.to_le_bytes();
        let width = if self.is_64_bit { 8 } else { 4 };
        self.bytes.extend(&bytes[..width]);
    }
}

#[cfg(test)]
mod tests;
