// A zip out of files, in STORED form: clips are compressed already. Written as a Blob of the files
// themselves and their headers, so nothing is held in memory but checksums.
// Format: PKWARE APPNOTE 6.3.10, sections 4.3.7 (local headers), 4.3.12 (directory), 4.3.14-16
// (end records, the first two for zip64), 4.5.3 (zip64 sizes).

const LIMIT_32 = 0xffffffff;
const LIMIT_16 = 0xffff;
const UTF8_NAMES = 0x0800;
const VERSION = 20;
const VERSION_64 = 45;
const ZIP64_EXTRA = 0x0001;

// entries: [{name, file}]. checksum(file, onBytes) gives its CRC-32. limit: from which size on a
// number needs zip64. Returns a Blob; the same files give the same bytes, so uploads can go on.
export async function zipOf(entries, { checksum, onProgress = () => {}, limit = LIMIT_32, type = "application/zip" }) {
  const parts = [];
  const directory = [];
  let offset = 0;
  let read = 0;
  for (const { name, file } of entries) {
    const crc = await checksum(file, (bytes) => onProgress(read + bytes));
    read += file.size;
    const entry = { name: new TextEncoder().encode(name), crc, size: file.size, offset, ...dosTime(file.lastModified ?? 0) };
    const header = localHeader(entry, limit);
    parts.push(header, file);
    offset += header.length + file.size;
    directory.push(directoryHeader(entry, limit));
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  return new Blob([...parts, ...directory, end({ count: directory.length, size, offset }, limit)], { type });
}

// Writes numbers one after another, little-endian.
function bytes(length, write) {
  const view = new DataView(new ArrayBuffer(length));
  let at = 0;
  write({
    u16: (value) => view.setUint16((at += 2) - 2, value, true),
    u32: (value) => view.setUint32((at += 4) - 4, value, true),
    u64: (value) => view.setBigUint64((at += 8) - 8, BigInt(value), true),
    text: (array) => {
      new Uint8Array(view.buffer).set(array, at);
      at += array.length;
    },
  });
  return new Uint8Array(view.buffer);
}

function localHeader(entry, limit) {
  const large = entry.size >= limit;
  return bytes(30 + entry.name.length + (large ? 20 : 0), (to) => {
    to.u32(0x04034b50);
    to.u16(large ? VERSION_64 : VERSION);
    common(to, entry, large ? LIMIT_32 : entry.size);
    to.u16(entry.name.length);
    to.u16(large ? 20 : 0);
    to.text(entry.name);
    if (large) {
      to.u16(ZIP64_EXTRA);
      to.u16(16);
      to.u64(entry.size);
      to.u64(entry.size);
    }
  });
}

function directoryHeader(entry, limit) {
  const large = [entry.size, entry.size, entry.offset].filter((value) => value >= limit);
  const extra = large.length ? 4 + 8 * large.length : 0;
  return bytes(46 + entry.name.length + extra, (to) => {
    to.u32(0x02014b50);
    to.u16(VERSION_64);
    to.u16(large.length ? VERSION_64 : VERSION);
    common(to, entry, entry.size >= limit ? LIMIT_32 : entry.size);
    to.u16(entry.name.length);
    to.u16(extra);
    to.u16(0);
    to.u16(0);
    to.u16(0);
    to.u32(0);
    to.u32(entry.offset >= limit ? LIMIT_32 : entry.offset);
    to.text(entry.name);
    if (extra) {
      to.u16(ZIP64_EXTRA);
      to.u16(extra - 4);
      for (const value of large) to.u64(value);
    }
  });
}

function common(to, entry, size) {
  to.u16(UTF8_NAMES);
  to.u16(0); // stored
  to.u16(entry.time);
  to.u16(entry.date);
  to.u32(entry.crc);
  to.u32(size);
  to.u32(size);
}

function end({ count, size, offset }, limit) {
  const large = count >= LIMIT_16 || size >= limit || offset >= limit;
  return bytes(22 + (large ? 76 : 0), (to) => {
    if (large) {
      to.u32(0x06064b50);
      to.u64(44);
      to.u16(VERSION_64);
      to.u16(VERSION_64);
      to.u32(0);
      to.u32(0);
      to.u64(count);
      to.u64(count);
      to.u64(size);
      to.u64(offset);
      to.u32(0x07064b50);
      to.u32(0);
      to.u64(offset + size);
      to.u32(1);
    }
    to.u32(0x06054b50);
    to.u16(0);
    to.u16(0);
    to.u16(large ? LIMIT_16 : count);
    to.u16(large ? LIMIT_16 : count);
    to.u32(large ? LIMIT_32 : size);
    to.u32(large ? LIMIT_32 : offset);
    to.u16(0);
  });
}

function dosTime(milliseconds) {
  const when = new Date(Math.max(milliseconds, Date.UTC(1980, 0, 2)));
  return {
    time: (when.getUTCHours() << 11) | (when.getUTCMinutes() << 5) | (when.getUTCSeconds() >> 1),
    date: ((when.getUTCFullYear() - 1980) << 9) | ((when.getUTCMonth() + 1) << 5) | when.getUTCDate(),
  };
}
