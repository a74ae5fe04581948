//! What is looked at before the runtime sees an image: AMD's loader trusts offsets and ends the process where they lead out of the file.

/// `EM_AMDGPU`.
const MACHINE: u64 = 224;
/// `ELFOSABI_AMDGPU_HSA`.
const ABI: u8 = 64;
/// `SHT_NOBITS`: a section without bytes in the file.
const NO_BYTES: u64 = 8;
/// `PT_NOTE`.
const NOTE: u64 = 4;
const HEADER: u64 = 64;
const SEGMENT: u64 = 56;
const SECTION: u64 = 64;

/// A code object, whole and for this target (`gfx942`, `gfx9-4-generic`); else what is wrong with it.
pub(crate) fn check(image: &[u8], target: &str) -> Result<(), String> {
    let file = File(image);
    let magic = image.get(..8).ok_or("it is no ELF file: it has less than 8 bytes")?;
    if magic[..4] != *b"\x7fELF" {
        return Err("it is no ELF file".into());
    }
    // 64 bits, the lower byte first.
    if magic[4..6] != [2, 1] || magic[7] != ABI || file.number(18, 2)? != MACHINE {
        return Err("it is no code object for AMD GPUs".into());
    }
    let mut found = None;
    for at in file.table(32, 54, 56, SEGMENT, "program header")? {
        let bytes = file.range(file.number(at + 8, 8)?, file.number(at + 32, 8)?, "segment")?;
        if file.number(at, 4)? == NOTE {
            found = found.or(target_in(bytes));
        }
    }
    for at in file.table(40, 58, 60, SECTION, "section header")? {
        if file.number(at + 4, 4)? != NO_BYTES {
            file.range(file.number(at + 24, 8)?, file.number(at + 32, 8)?, "section")?;
        }
    }
    let found = found.ok_or("it does not say which GPU it is for")?;
    // Features that it depends on stand behind a colon: gfx942:xnack-.
    match found.split(':').next() {
        Some(arch) if arch == target => Ok(()),
        _ => Err(format!("it is for {found}, not for {target}")),
    }
}

/// The target in a code object's metadata, which is MessagePack: the key, then a string with its length before it.
fn target_in(note: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"amdhsa.target";
    const TRIPLE: &str = "amdgcn-amd-amdhsa--";
    let at = note.windows(KEY.len()).position(|w| w == KEY)? + KEY.len();
    let rest = &note[at..];
    let (len, text) = match *rest.first()? {
        // Up to 31 bytes, with the length in the type.
        short @ 0xa0..=0xbf => (usize::from(short & 31), rest.get(1..)?),
        0xd9 => (usize::from(*rest.get(1)?), rest.get(2..)?),
        _ => return None,
    };
    let text = core::str::from_utf8(text.get(..len)?).ok()?;
    // Generic targets since code object 6 have no empty environment.
    let arch = text.strip_prefix(TRIPLE).or_else(|| text.strip_prefix("amdgcn-amd-amdhsa-unknown-"));
    arch.map(str::to_string)
}

/// A file whose every number and range is within it.
struct File<'a>(&'a [u8]);

impl<'a> File<'a> {
    /// `len` bytes, the lowest first.
    fn number(&self, at: u64, len: u64) -> Result<u64, String> {
        let bytes = self.range(at, len, "header")?;
        Ok(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn range(&self, at: u64, len: u64, what: &str) -> Result<&'a [u8], String> {
        let end = at.checked_add(len).and_then(|end| usize::try_from(end).ok());
        let bytes = end.and_then(|end| self.0.get(usize::try_from(at).ok()?..end));
        bytes.ok_or_else(|| format!("it is cut off: a {what} ends behind its {} bytes", self.0.len()))
    }

    /// Where the lines of a table begin. The file's header says at `start` where the table is, and from `size` to `count` how long a line
    /// is and how many there are.
    fn table(&self, start: u64, size: u64, count: u64, line: u64, what: &str) -> Result<Vec<u64>, String> {
        self.range(0, HEADER, "header")?;
        let (start, size, count) = (self.number(start, 8)?, self.number(size, 2)?, self.number(count, 2)?);
        if count > 0 && size != line {
            return Err(format!("a {what} of {size} bytes instead of {line}"));
        }
        self.range(start, size * count, what)?;
        Ok((0..count).map(|i| start + i * size).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest file that passes: header, one note segment, no section but the empty first.
    pub(crate) fn object(target: &str) -> Vec<u8> {
        let text = format!("amdgcn-amd-amdhsa--{target}");
        let mut note = b"\x00amdhsa.target".to_vec();
        match text.len() {
            len @ 0..32 => note.push(0xa0 | len as u8),
            len => note.extend([0xd9, len as u8]),
        }
        note.extend(text.bytes());
        let mut file = vec![0u8; (HEADER + SEGMENT + SECTION) as usize];
        let mut put = |at: u64, bytes: &[u8]| file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01\x40");
        put(18, &(MACHINE as u16).to_le_bytes());
        put(32, &HEADER.to_le_bytes());
        put(40, &(HEADER + SEGMENT).to_le_bytes());
        for (at, number) in [(54, SEGMENT), (56, 1), (58, SECTION), (60, 1)] {
            put(at, &(number as u16).to_le_bytes());
        }
        put(HEADER, &(NOTE as u32).to_le_bytes());
        put(HEADER + 8, &(HEADER + SEGMENT + SECTION).to_le_bytes());
        put(HEADER + 32, &(note.len() as u64).to_le_bytes());
        file.extend(note);
        file
    }

    #[test]
    fn whole_objects_for_the_device_pass() {
        for target in ["gfx942", "gfx1100", "gfx9-4-generic"] {
            assert_eq!(check(&object(target), target), Ok(()));
        }
        assert_eq!(check(&object("gfx942:sramecc+:xnack-"), "gfx942"), Ok(()), "features stand behind the name");
    }

    #[test]
    fn others_are_refused_in_words() {
        let refused = |image: &[u8], words: &str| {
            let said = check(image, "gfx942").unwrap_err();
            assert!(said.contains(words), "{said}");
        };
        refused(b"", "less than 8 bytes");
        refused(&[0x5a; 4096], "no ELF");
        refused(&object("gfx1100"), "for gfx1100, not for gfx942");
        refused(&object("gfx94"), "for gfx94, not for gfx942");
        let mut other_machine = object("gfx942");
        other_machine[18] = 62;
        refused(&other_machine, "no code object for AMD");
        let mut nameless = object("gfx942");
        let at = nameless.len() - 30;
        nameless[at] ^= 1;
        refused(&nameless, "does not say which GPU");
    }

    #[test]
    fn every_truncation_is_refused() {
        let whole = object("gfx942");
        for len in 0..whole.len() {
            assert!(check(&whole[..len], "gfx942").is_err(), "{len} of {} bytes", whole.len());
        }
    }

    /// Whatever bit is wrong, the answer is a value.
    #[test]
    fn damage_never_panics() {
        let whole = object("gfx942");
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let _ = check(&damaged, "gfx942");
        }
        let mut far = whole.clone();
        far[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(check(&far, "gfx942").unwrap_err().contains("cut off"));
    }
}
