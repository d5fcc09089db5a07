// Opens viewers of others in a headless Chromium and takes their pictures.
//
//   node shoot.mjs CHROMIUM < jobs.json     jobs: [{page, file, camera: {position, target, up, fov}, size, picture}, ...]
//
// A page of pages/ is told the file's address and the camera, which it takes as given, and promises `window.shown`: when
// it is kept, the picture is taken, and what it was kept with is printed, a list for all jobs. Nothing but 127.0.0.1 is
// reached. Any error of a page ends all.
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';

const here = path.dirname(fileURLToPath(import.meta.url));
const jobs = JSON.parse(fs.readFileSync(0, 'utf8'));
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm' };

const server = http.createServer((request, response) => {
    const [, first, ...rest] = decodeURI(new URL(request.url, 'http://127.0.0.1').pathname).split('/');
    const file = first === 'job' ? jobs[rest[0]].file : path.join(here, first, ...rest);
    const found = fs.existsSync(file) && fs.statSync(file).isFile();
    response.writeHead(found ? 200 : 404, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream' });
    response.end(found ? fs.readFileSync(file) : '');
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const root = `http://127.0.0.1:${server.address().port}`;

const browser = await puppeteer.launch({
    executablePath: process.argv[2],
    args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader',
        '--ignore-gpu-blocklist', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'],
    protocolTimeout: 300_000,
});
console.error(await browser.version());

async function shoot({ page: name, file, camera, size, picture }, index) {
    const page = await browser.newPage();
    const failed = new Promise((_, fail) => {
        page.on('pageerror', (error) => fail(error));
        page.on('requestfailed', (request) => fail(new Error(`${request.url()} cannot be loaded`)));
        page.on('response', (got) => got.status() >= 400 && fail(new Error(`${got.url()} is not there`)));
        page.on('console', (said) => console.error(`${name}: ${said.text()}`));
    });
    failed.catch(() => {});
    page.setDefaultNavigationTimeout(300_000);
    await page.setViewport({ width: size, height: size, deviceScaleFactor: 1 });
    const asked = { ...camera, file: `/job/${index}/${path.basename(file)}` };
    const shown = page.goto(`${root}/pages/${name}.html#${encodeURIComponent(JSON.stringify(asked))}`)
        .then(() => page.evaluate('window.shown'));
    const told = await Promise.race([shown, failed]);
    await page.screenshot({ path: picture });
    await page.close();
    return told ?? null;
}

try {
    const told = [];
    for (const [index, job] of jobs.entries()) told.push(await shoot(job, index));
    console.log(JSON.stringify(told));
} finally {
    await browser.close();
    server.close();
}
